//! Uploads of a case go into a zip file.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use data_encoding::HEXLOWER;
use md5::{Digest as _, Md5};
use talon_crypto::Sha256;
use talon_endpoint_vql::{UploadRequest, Uploaded, Uploader};
use talon_vql::{CallError, Scope};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// The container of a case.
pub(super) struct Container(Mutex<State>);

struct State {
    zip: ZipWriter<File>,
    count: i64,
}

impl Container {
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self(Mutex::new(State { zip: ZipWriter::new(File::create_new(path)?), count: 0 })))
    }
}

impl Uploader for Container {
    fn upload(&self, scope: &Scope, request: UploadRequest) -> Result<Uploaded, CallError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("uploads/{}/{}", request.accessor, request.components.join("/"));
        state.zip.start_file(&name, SimpleFileOptions::default().large_file(true)).map_err(CallError::failed)?;
        let (mut reader, _) = request.source.into_parts();
        let (mut sha256, mut md5, mut size) = (Sha256::new(), Md5::new(), 0_u64);
        let mut buffer = vec![0; CHUNK];
        while !scope.stopped() {
            let count = reader.read(&mut buffer)?;
            let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
            state.zip.write_all(chunk)?;
            sha256.update(chunk);
            md5.update(chunk);
            size = size.saturating_add(count as u64);
        }
        let upload_id = state.count;
        state.count = state.count.saturating_add(1);
        Ok(Uploaded {
            path: request.filename,
            size,
            stored_size: size,
            sha256: HEXLOWER.encode(&sha256.finish()),
            md5: HEXLOWER.encode(&md5.finalize()),
            stored_name: name,
            components: request.components,
            accessor: request.accessor,
            upload_id,
            error: String::new(),
        })
    }
}
