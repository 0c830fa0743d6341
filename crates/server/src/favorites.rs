//! Favourites: collections that a user keeps under a name, each user's own.

use prost::Message;
use talon_audit::Details;
use talon_proto::{Favorite, Favorites};
use talon_store::Space;

use crate::ServerError;
use crate::layout::get;
use crate::session::Session;

/// Favourites of one user.
const MAX: usize = 1_000;
/// The most bytes of one of them.
const MAX_BYTES: usize = 64 * 1024;

impl Session {
    fn favorites_key(&self) -> Vec<u8> {
        [b"favorites\0", self.principal().folded().as_bytes()].concat()
    }

    /// The principal's favourites, of one type if one is named.
    ///
    /// # Errors
    /// When storage fails.
    pub fn favorites(&self, kind: &str) -> Result<Vec<Favorite>, ServerError> {
        let stored: Option<Favorites> = get(self.org().reader(), self.org().id(), Space::Settings, &self.favorites_key())?;
        let mut items = stored.unwrap_or_default().items;
        items.retain(|item| kind.is_empty() || item.r#type == kind);
        Ok(items)
    }

    /// Keeps a favourite, in place of one of that name and type.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] for one that has no name, is too large, or one too many.
    pub fn save_favorite(&self, favorite: Favorite) -> Result<(), ServerError> {
        if favorite.name.is_empty() || favorite.encoded_len() > MAX_BYTES {
            return Err(ServerError::invalid(format!("a favourite has a name and at most {MAX_BYTES} bytes")));
        }
        let details = Details::new().text("name", &favorite.name).text("type", &favorite.r#type);
        drop(self.record("favorites_save", details)?);
        self.change_favorites(move |items| {
            items.retain(|item| item.name != favorite.name || item.r#type != favorite.r#type);
            items.push(favorite);
        })
    }

    /// Keeps a favourite no more.
    ///
    /// # Errors
    /// When storage fails.
    pub fn delete_favorite(&self, name: &str, kind: &str) -> Result<(), ServerError> {
        drop(self.record("favorites_delete", Details::new().text("name", name).text("type", kind))?);
        let (name, kind) = (name.to_owned(), kind.to_owned());
        self.change_favorites(move |items| items.retain(|item| item.name != name || item.r#type != kind))
    }

    fn change_favorites(&self, change: impl FnOnce(&mut Vec<Favorite>) + Send + 'static) -> Result<(), ServerError> {
        let (org, key) = (self.org().id().clone(), self.favorites_key());
        self.org()
            .submit(move |txn| {
                let mut stored: Favorites = get(&*txn, &org, Space::Settings, &key)?.unwrap_or_default();
                change(&mut stored.items);
                if stored.items.len() > MAX {
                    return Err(ServerError::invalid(format!("more than {MAX} favourites")));
                }
                txn.put(&org, Space::Settings, &key, stored.encode_to_vec());
                Ok(())
            })
            .wait()
    }
}
