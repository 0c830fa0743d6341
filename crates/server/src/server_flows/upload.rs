//! Files that a collection on the server uploads: they go straight into the store.

use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;
use md5::{Digest as _, Md5};
use talon_crypto::Sha256;
use talon_endpoint_vql::accessor::FileReader;
use talon_endpoint_vql::{UploadRequest, Uploaded};
use talon_ids::{Target, UploadPath};
use talon_proto::Range;
use talon_store::{BlockEncoding, ObjectName, RowBlock};
use talon_vql::{CallError, Scope};

use super::Run;
use crate::layout::{flow_file, flow_uploads};
use crate::org::lock;
use crate::rows;
use crate::uploads::Finished;

/// The longest piece of a file.
const PIECE: u64 = 1 << 20;

/// What is known of a file that is being stored.
struct Stored {
    name: ObjectName,
    bytes: u64,
    sha256: Sha256,
    md5: Md5,
}

impl Run {
    pub(super) fn upload(&self, at: usize, scope: &Scope, request: UploadRequest) -> Result<Uploaded, CallError> {
        let components = if request.components.is_empty() { vec![request.store_as.clone()] } else { request.components.clone() };
        let path = UploadPath::new(&request.accessor, components).map_err(CallError::failed)?;
        let started_s = self.org.now_us() / 1_000_000;
        let name = flow_file(&Target::Server, &self.flow, &path);
        let (org, object) = (self.org.id().clone(), name.clone());
        self.org.submit(move |txn| Ok(txn.delete_object(&org, &object)?)).wait().map_err(CallError::failed)?;
        let (accessor, filename, store_as, parts) = (request.accessor, request.filename, request.store_as, request.components);
        let expected = request.expected_size;
        let (mut reader, ranges) = request.source.into_parts();
        let mut stored = Stored { name, bytes: 0, sha256: Sha256::new(), md5: Md5::new() };
        let mut index = Vec::new();
        let mut size = 0;
        match ranges {
            None => self.store_until(scope, &mut *reader, u64::MAX, &mut stored)?,
            Some(ranges) => {
                let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
                for range in ranges {
                    let start = stored.bytes;
                    if !range.is_sparse {
                        reader.seek(SeekFrom::Start(range.offset))?;
                        self.store_until(scope, &mut *reader, range.length, &mut stored)?;
                    }
                    index.push(Range {
                        original_offset: signed(range.offset),
                        length: signed(range.length),
                        file_offset: signed(start),
                        file_length: signed(stored.bytes.saturating_sub(start)),
                    });
                    size = range.offset.saturating_add(range.length).max(size);
                }
            }
        }
        let size = size.max(stored.bytes);
        let finished =
            Finished { target: &Target::Server, flow: &self.flow, path: &path, size, stored: stored.bytes, started_s, ranges: &index };
        let lines = finished.rows(self.org.now_us() / 1_000_000);
        let (org, object, table, empty) =
            (self.org.id().clone(), stored.name.clone(), flow_uploads(&Target::Server, &self.flow), stored.bytes == 0);
        let ended = self.org.submit(move |txn| {
            if empty {
                txn.append_upload(&org, &object, 0, plain(Bytes::new()))?;
            }
            txn.finish_upload(&org, &object)?;
            txn.append_rows(&org, &table, None, rows::block(&lines))?;
            Ok(())
        });
        ended.wait().map_err(CallError::failed)?;
        let mut state = lock(&self.state);
        let upload_id = state.uploads;
        state.uploads = state.uploads.saturating_add(1);
        if let Some(action) = state.actions.get_mut(at) {
            let signed = i64::try_from(stored.bytes).unwrap_or(i64::MAX);
            action.status.uploaded_files = action.status.uploaded_files.saturating_add(1);
            action.status.uploaded_bytes = action.status.uploaded_bytes.saturating_add(signed);
            let expected = i64::try_from(expected).unwrap_or(i64::MAX);
            action.status.expected_uploaded_bytes = action.status.expected_uploaded_bytes.saturating_add(expected);
        }
        Ok(Uploaded {
            path: filename,
            size,
            stored_size: stored.bytes,
            sha256: hex::encode(stored.sha256.finish()),
            md5: hex::encode(stored.md5.finalize()),
            stored_name: store_as,
            components: parts,
            accessor,
            upload_id,
            error: String::new(),
        })
    }

    /// Stores at most `limit` bytes from where the reader stands.
    fn store_until(&self, scope: &Scope, reader: &mut dyn FileReader, limit: u64, stored: &mut Stored) -> Result<(), CallError> {
        let mut left = limit;
        while left > 0 {
            if scope.stopped() {
                return Err(CallError::from("the query was stopped"));
            }
            let mut piece = Vec::new();
            let read = (&mut *reader).take(left.min(PIECE)).read_to_end(&mut piece)?;
            let read = u64::try_from(read).unwrap_or(u64::MAX);
            if read == 0 {
                break;
            }
            left = left.saturating_sub(read);
            {
                let mut state = lock(&self.state);
                state.uploaded = state.uploaded.saturating_add(read);
                if state.uploaded > self.max_bytes {
                    drop(state);
                    self.cancel.cancel("Byte limit exceeded");
                    return Err(CallError::from("Byte limit exceeded"));
                }
            }
            stored.sha256.update(&piece);
            stored.md5.update(&piece);
            let (org, object, offset) = (self.org.id().clone(), stored.name.clone(), stored.bytes);
            let written = self.org.submit(move |txn| Ok(txn.append_upload(&org, &object, offset, plain(piece.into()))?));
            written.wait().map_err(CallError::failed)?;
            stored.bytes = stored.bytes.saturating_add(read);
        }
        Ok(())
    }
}

fn plain(data: Bytes) -> RowBlock {
    RowBlock { plain_len: data.len() as u64, data, count: 0, encoding: BlockEncoding::Plain }
}
