//! The Merkle tree of a log, as far as it must be kept in memory: the hashes of the tiles that are not full yet.

use tlog_tiles::{EMPTY_HASH, Error, Hash, HashReader, Tile, node_hash};

use crate::key::Head;
use crate::layout::{self, WIDTH};
use crate::{AuditError, Storage};

/// Each tile spans eight levels of the tree.
pub(crate) const HEIGHT: u8 = 8;

/// The right edge of a tree of `size` leaves. `edge[level]` are the hashes of the open tile of that tile level.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    size: u64,
    edge: Vec<Vec<Hash>>,
}

/// A tile that a new leaf filled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FullTile {
    pub(crate) level: u8,
    pub(crate) n: u64,
    pub(crate) hashes: Vec<u8>,
}

impl FullTile {
    pub(crate) fn name(&self) -> String {
        layout::tile(self.level, self.n, WIDTH)
    }
}

impl Tree {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf and hands out the tiles that it filled.
    pub(crate) fn push(&mut self, leaf: Hash) -> Vec<FullTile> {
        self.size = self.size.saturating_add(1);
        let mut full = Vec::new();
        let mut carry = leaf;
        for level in 0..HEIGHT {
            if self.edge.len() <= usize::from(level) {
                self.edge.push(Vec::new());
            }
            let Some(open) = self.edge.get_mut(usize::from(level)) else { break };
            open.push(carry);
            if (open.len() as u64) < WIDTH {
                break;
            }
            let hashes = bytes_of(&std::mem::take(open));
            carry = Tile::subtree_hash(&hashes);
            let n = (self.size >> (u32::from(level + 1) * u32::from(HEIGHT))).saturating_sub(1);
            full.push(FullTile { level, n, hashes });
        }
        full
    }

    /// The root, as RFC 6962 defines it.
    pub(crate) fn root(&self) -> Hash {
        let mut subtrees = Vec::new();
        for open in self.edge.iter().rev() {
            let mut rest = open.as_slice();
            while !rest.is_empty() {
                let largest = 1 << rest.len().ilog2();
                let (subtree, right) = rest.split_at(largest);
                subtrees.push(Tile::subtree_hash(&bytes_of(subtree)));
                rest = right;
            }
        }
        subtrees.into_iter().rev().reduce(|right, left| node_hash(left, right)).unwrap_or(EMPTY_HASH)
    }

    pub(crate) fn head(&self) -> Head {
        Head { size: self.size, root: self.root() }
    }

    /// The partial tiles: level, number and hashes of each.
    pub(crate) fn partial_tiles(&self) -> impl Iterator<Item = (u8, u64, Vec<u8>)> {
        (0..HEIGHT).zip(&self.edge).filter(|(_, open)| !open.is_empty()).map(|(level, open)| {
            let n = self.size >> (u32::from(level + 1) * u32::from(HEIGHT));
            (level, n, bytes_of(open))
        })
    }

    /// Rebuilds the edge of a tree of `bundles` full bundles from its stored tiles.
    pub(crate) fn load(bundles: u64, storage: &dyn Storage) -> Result<Self, AuditError> {
        let mut edge = vec![Vec::new()];
        let mut level = 0;
        let mut complete = bundles;
        while complete > 0 && level < HEIGHT {
            let first = complete - complete % WIDTH;
            let hashes = (first..complete).map(|n| read_tile(storage, level, n).map(|tile| Tile::subtree_hash(&tile)));
            edge.push(hashes.collect::<Result<Vec<_>, _>>()?);
            complete /= WIDTH;
            level += 1;
        }
        let size = bundles.checked_mul(WIDTH).ok_or(AuditError::Record("too many"))?;
        Ok(Self { size, edge })
    }
}

fn read_tile(storage: &dyn Storage, level: u8, n: u64) -> Result<Vec<u8>, AuditError> {
    let name = layout::tile(level, n, WIDTH);
    let tile = storage.read(&name)?.unwrap_or_default();
    let whole = tile.len() as u64 == WIDTH * tlog_tiles::HASH_SIZE as u64;
    if whole { Ok(tile) } else { Err(AuditError::Damaged { place: name, detail: "it is not a full tile" }) }
}

fn bytes_of(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// Reads any hash of the tree, from the stored tiles and the edge.
pub(crate) struct Hashes<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) storage: &'a dyn Storage,
}

impl Hashes<'_> {
    fn hash(&self, index: u64) -> Result<Hash, Error> {
        let wanted = Tile::from_index(HEIGHT, index);
        let (level, n) = (wanted.level(), wanted.level_index());
        let full = self.tree.size >> (u32::from(level) + 1).saturating_mul(u32::from(HEIGHT)).min(63);
        if n < full {
            let data = read_tile(self.storage, level, n).map_err(|_| Error::InvalidTile)?;
            return Tile::new(HEIGHT, level, n, 1 << HEIGHT, false).hash_at_index(&data, index);
        }
        let open = self.tree.edge.get(usize::from(level)).filter(|open| n == full && !open.is_empty()).ok_or(Error::IndexesNotInTree)?;
        let width = u32::try_from(open.len()).map_err(|_| Error::BadMath)?;
        Tile::new(HEIGHT, level, n, width, false).hash_at_index(&bytes_of(open), index)
    }
}

impl HashReader for Hashes<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        indexes.iter().map(|index| self.hash(*index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use tlog_tiles::{record_hash, stored_hashes_for_record_hash, tree_hash};

    use super::*;
    use crate::MemoryStorage;

    /// The plain way: all hashes in one list.
    struct Everything(Vec<Hash>);

    impl HashReader for Everything {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
            Ok(indexes.iter().map(|index| self.0[usize::try_from(*index).unwrap()]).collect())
        }
    }

    #[test]
    fn roots_and_tiles_agree_with_the_reference_at_every_size() {
        let storage = MemoryStorage::default();
        let mut tree = Tree::default();
        let mut reference = Everything(Vec::new());
        assert_eq!(tree.root(), EMPTY_HASH);
        for n in 0..66_000_u64 {
            let leaf = record_hash(&n.to_be_bytes());
            let new = stored_hashes_for_record_hash(n, leaf, &reference).unwrap();
            reference.0.extend(new);
            for tile in tree.push(leaf) {
                storage.write(&tile.name(), &tile.hashes).unwrap();
            }
            if n < 1_100 || n % 997 == 0 || (65_500..65_600).contains(&n) {
                assert_eq!(tree.root(), tree_hash(n + 1, &reference).unwrap(), "{n}");
            }
            if n % 9_973 == 0 || n == 65_535 {
                let whole = Hashes { tree: &tree, storage: &storage };
                assert_eq!(tree_hash(n + 1, &whole).unwrap(), tree.root());
            }
        }
        assert_eq!(storage.files().keys().filter(|name| name.starts_with("tile/1/")).count(), 1);
        let mut loaded = Tree::load(257, &storage).unwrap();
        assert_eq!(loaded.root(), tree_hash(257 * 256, &reference).unwrap());
        for n in 257 * 256..66_000_u64 {
            loaded.push(record_hash(&n.to_be_bytes()));
        }
        assert_eq!(loaded.head(), tree.head());
    }
}
