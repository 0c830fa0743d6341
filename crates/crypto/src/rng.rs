//! Randomness as a seam: production draws from the operating system, tests replay recorded bytes.

use ring::rand::{SecureRandom, SystemRandom};

/// A source of unpredictable bytes.
pub trait Rng: Send + Sync {
    /// Overwrites all of `out` with random bytes.
    fn fill(&self, out: &mut [u8]);
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRng;

impl Rng for SystemRng {
    /// Fills `out` from the operating system. A generator that fails ends the process: no key may ever be made from bytes that are not random.
    fn fill(&self, out: &mut [u8]) {
        if SystemRandom::new().fill(out).is_err() {
            std::process::abort();
        }
    }
}

impl<R: Rng + ?Sized> Rng for &R {
    fn fill(&self, out: &mut [u8]) {
        (**self).fill(out);
    }
}

impl<R: Rng + ?Sized> Rng for std::sync::Arc<R> {
    fn fill(&self, out: &mut [u8]) {
        (**self).fill(out);
    }
}

/// An array of random bytes.
#[must_use]
pub fn random_array<const N: usize>(rng: &dyn Rng) -> [u8; N] {
    let mut out = [0; N];
    rng.fill(&mut out);
    out
}
