//! Who may cause an RSA operation now: one token bucket for everybody, one for each source. A pure decision over the time it is given.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;

use crate::{BudgetLimits, UnixMicros};

/// The budget's memory.
pub struct Budget {
    limits: BudgetLimits,
    all: Bucket,
    sources: LruCache<IpAddr, Bucket>,
}

/// Tokens are counted in millionths, so that refilling is exact in integers: one token a second is one millionth a microsecond.
const TOKEN: u64 = 1_000_000;

#[derive(Clone, Copy)]
struct Bucket {
    tokens: u64,
    at: UnixMicros,
}

impl Bucket {
    fn full(burst: u32, now: UnixMicros) -> Self {
        Self { tokens: u64::from(burst).saturating_mul(TOKEN), at: now }
    }

    /// A clock that goes backwards adds nothing and restarts the count.
    fn refill(&mut self, per_second: u32, burst: u32, now: UnixMicros) {
        let gained = now.0.saturating_sub(self.at.0).saturating_mul(u64::from(per_second));
        self.tokens = self.tokens.saturating_add(gained).min(u64::from(burst).saturating_mul(TOKEN));
        self.at = now;
    }

    fn wait(&self, per_second: u32) -> Option<Duration> {
        let missing = TOKEN.saturating_sub(self.tokens);
        (missing > 0).then(|| match missing.checked_div(u64::from(per_second)) {
            Some(micros) => Duration::from_micros(micros.saturating_add(1)),
            None => Duration::MAX,
        })
    }

    fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(TOKEN);
    }

    fn give_back(&mut self, burst: u32) {
        self.tokens = self.tokens.saturating_add(TOKEN).min(u64::from(burst).saturating_mul(TOKEN));
    }
}

impl Budget {
    /// A full budget.
    #[must_use]
    pub fn new(limits: BudgetLimits) -> Self {
        let all = Bucket::full(limits.burst, UnixMicros(0));
        let sources = LruCache::new(NonZeroUsize::new(limits.sources).unwrap_or(NonZeroUsize::MIN));
        Self { limits, all, sources }
    }

    /// Takes one operation for `source`. The source's own bucket is asked first, so a source that is over its share takes nothing from the others.
    ///
    /// # Errors
    /// How long to wait when the budget is spent; nothing was taken then.
    pub fn take(&mut self, source: IpAddr, now: UnixMicros) -> Result<(), Duration> {
        let limits = &self.limits;
        let bucket = self.sources.get_or_insert_mut(neighbourhood(source), || Bucket::full(limits.source_burst, now));
        bucket.refill(limits.source_per_second, limits.source_burst, now);
        self.all.refill(limits.per_second, limits.burst, now);
        if let Some(wait) = bucket.wait(limits.source_per_second).or_else(|| self.all.wait(limits.per_second)) {
            return Err(wait.min(limits.longest_wait));
        }
        bucket.take();
        self.all.take();
        Ok(())
    }

    /// Returns the operation to `source`'s own share, because its packet turned out to be authentic. The common share stays spent: the work was done.
    pub fn forgive(&mut self, source: IpAddr) {
        if let Some(bucket) = self.sources.get_mut(&neighbourhood(source)) {
            bucket.give_back(self.limits.source_burst);
        }
    }
}

/// IPv6 hosts own whole /64 networks, so those count as one source.
fn neighbourhood(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTACKER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const HONEST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn budget() -> Budget {
        Budget::new(BudgetLimits {
            per_second: 100,
            burst: 100,
            source_per_second: 2,
            source_burst: 10,
            sources: 4,
            ..BudgetLimits::default()
        })
    }

    fn at(seconds: u64) -> UnixMicros {
        UnixMicros(1_700_000_000_000_000 + seconds * 1_000_000)
    }

    #[test]
    fn one_source_cannot_spend_the_share_of_the_others() {
        let mut budget = budget();
        let granted = (0..1000).filter(|_| budget.take(ATTACKER, at(0)).is_ok()).count();
        assert_eq!(granted, 10);
        assert_eq!(budget.take(HONEST, at(0)), Ok(()));
        assert_eq!(budget.take(ATTACKER, at(0)), Err(Duration::from_micros(500_001)));
        let granted = (0..1000).filter(|_| budget.take(ATTACKER, at(3)).is_ok()).count();
        assert_eq!(granted, 6, "two a second");
    }

    #[test]
    fn authentic_packets_are_free_of_the_source_share_but_not_of_the_common_one() {
        let mut budget = budget();
        let granted = (0..1000)
            .filter(|_| {
                let granted = budget.take(HONEST, at(0)).is_ok();
                budget.forgive(HONEST);
                granted
            })
            .count();
        assert_eq!(granted, 100);
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_one_source() {
        let mut budget = budget();
        let granted =
            (0..1000_u16).filter(|host| budget.take(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, *host).into(), at(0)).is_ok()).count();
        assert_eq!(granted, 10);
        assert_eq!(budget.take(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 1).into(), at(0)), Ok(()));
    }

    #[test]
    fn a_clock_that_jumps_back_grants_nothing_and_recovers() {
        let mut budget = budget();
        while budget.take(ATTACKER, at(100)).is_ok() {}
        assert!(budget.take(ATTACKER, at(0)).is_err());
        assert_eq!(budget.take(ATTACKER, at(1)), Ok(()));
    }

    #[test]
    fn a_rate_of_zero_refuses_with_the_longest_wait() {
        let mut budget = Budget::new(BudgetLimits { source_per_second: 0, source_burst: 0, ..BudgetLimits::default() });
        assert_eq!(budget.take(HONEST, at(0)), Err(Duration::from_secs(60)));
    }
}
