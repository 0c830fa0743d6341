//! The rows by which finished uploads of a flow are found again (`spec/05` §14.3).

use serde_json::json;
use talon_ids::{FlowId, Target, UploadPath};
use talon_proto::Range;

use crate::{clock, rows};

/// A file that a flow has uploaded whole.
pub(crate) struct Finished<'a> {
    pub(crate) target: &'a Target,
    pub(crate) flow: &'a FlowId,
    pub(crate) path: &'a UploadPath,
    /// Its size where it came from, in bytes.
    pub(crate) size: u64,
    /// Bytes stored.
    pub(crate) stored: u64,
    /// When its first byte came, in seconds.
    pub(crate) started_s: u64,
    /// Where its parts belong, for a file with holes.
    pub(crate) ranges: &'a [Range],
}

impl Finished<'_> {
    fn components(&self) -> Vec<String> {
        let fixed = ["clients", self.target.as_str(), "collections", self.flow.as_str(), "uploads", self.path.accessor()];
        fixed.into_iter().map(str::to_owned).chain(self.path.components().iter().cloned()).collect()
    }

    /// Where the API finds the file.
    pub(crate) fn vfs_path(&self) -> String {
        format!("/{}", self.components().join("/"))
    }

    /// One row, and one for the index of a file with holes.
    pub(crate) fn rows(&self, now_s: u64) -> Vec<String> {
        let vfs_path = self.vfs_path();
        let columns = [
            ("Timestamp", json!(now_s)),
            ("started", json!(clock::rfc3339(self.started_s))),
            ("vfs_path", json!(vfs_path)),
            ("Type", json!("")),
            ("_Components", json!(self.components())),
            ("file_size", json!(self.size)),
            ("_accessor", json!(self.path.accessor())),
            ("_client_components", json!(self.path.components())),
            ("uploaded_size", json!(self.stored)),
        ];
        let mut uploads = vec![rows::object(&columns)];
        if !self.ranges.is_empty() {
            let ranges: Vec<_> = self.ranges.iter().map(range_json).collect();
            let sparse = [("Type", json!("idx")), ("vfs_path", json!(format!("{vfs_path}.idx"))), ("_ranges", json!(ranges))];
            let row: Vec<_> = columns.iter().filter(|(name, _)| !matches!(*name, "Type" | "vfs_path")).cloned().chain(sparse).collect();
            uploads.push(rows::object(&row));
        }
        uploads
    }
}

fn range_json(range: &Range) -> serde_json::Value {
    json!({
        "file_offset": range.file_offset,
        "original_offset": range.original_offset,
        "file_length": range.file_length,
        "length": range.length,
    })
}
