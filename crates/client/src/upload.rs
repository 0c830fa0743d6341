//! Files on their way to the server: one opening message, pieces of at most one MiB, one closing piece (spec 01 §12).

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use md5::{Digest as _, Md5};
use talon_crypto::Sha256;
use talon_endpoint_vql::accessor::Range;
use talon_endpoint_vql::{FileTimes, UploadRequest, Uploaded, Uploader};
use talon_proto::{FileBuffer, Index, PathSpec, Range as ProtoRange, UploadTransaction, VeloMessage, VqlRequest};
use talon_vql::{CallError, Dict, LogSink, Scope};

use crate::batch::deflate;
use crate::flow::Flow;
use crate::query::Sink;

/// Request id of uploads (spec 01 §16).
const TRANSFER: u64 = 5;

/// Longest piece of a file.
const PIECE: usize = 1 << 20;

/// The zero time of stock peers, in nanoseconds: a time that is not known.
const NO_TIME: i64 = -6_795_364_578_871_345_152;

/// One action of a flow, as the engine sees it.
pub(crate) struct ActionSink {
    pub(crate) flow: Arc<Flow>,
    pub(crate) action: usize,
}

impl LogSink for ActionSink {
    fn log(&self, line: &str) {
        self.flow.log(self.action, line);
    }
}

impl Sink for ActionSink {
    fn row(&self, statement: usize, request: &VqlRequest, row: &Dict) -> bool {
        self.flow.row(self.action, statement, request, row)
    }
}

impl Uploader for ActionSink {
    fn upload(&self, scope: &Scope, request: UploadRequest) -> Result<Uploaded, CallError> {
        let key = format!("{}\0{}\0{}", request.accessor, request.filename, request.components.join("\0"));
        if let Some(uploaded) = self.flow.known_upload(&key) {
            return Ok(uploaded);
        }
        let mut transfer = Transfer::begin(self, request)?;
        transfer.send_content(scope)?;
        let uploaded = transfer.end()?;
        self.flow.remember_upload(self.action, key, &uploaded);
        Ok(uploaded)
    }
}

struct Transfer<'a> {
    sink: &'a ActionSink,
    reader: Box<dyn talon_endpoint_vql::accessor::FileReader>,
    ranges: Option<Vec<Range>>,
    packed: bool,
    template: FileBuffer,
    uploaded: Uploaded,
    sent: u64,
    index: Vec<ProtoRange>,
    sha256: Sha256,
    md5: Md5,
}

/// What a flow that takes nothing more tells the query.
fn refused() -> CallError {
    CallError::from("the flow takes no more uploads")
}

impl<'a> Transfer<'a> {
    fn begin(sink: &'a ActionSink, request: UploadRequest) -> Result<Self, CallError> {
        let UploadRequest { accessor, filename, store_as, components, expected_size, times, mode, source } = request;
        let FileTimes { mtime, atime, ctime, btime } = times;
        let [mtime, atime, ctime, btime] = [mtime, atime, ctime, btime].map(|time| time.unwrap_or(NO_TIME));
        let transaction = UploadTransaction {
            filename: filename.clone(),
            accessor: accessor.clone(),
            store_as_name: store_as.clone(),
            components: components.clone(),
            expected_size: i64::try_from(expected_size).unwrap_or(i64::MAX),
            mtime,
            atime,
            ctime,
            btime,
            mode,
            ..UploadTransaction::default()
        };
        let id = sink.flow.begin_upload(sink.action, expected_size, |upload_id| VeloMessage {
            upload_transaction: Some(UploadTransaction { upload_id, ..transaction }),
            ..sink.flow.message(TRANSFER)
        });
        let id = id.ok_or_else(refused)?;
        let (reader, ranges) = source.into_parts();
        let pathspec = PathSpec { path: store_as.clone(), accessor: accessor.clone(), components: components.clone() };
        let template = FileBuffer {
            pathspec: Some(pathspec),
            size: expected_size,
            upload_number: id,
            mtime,
            atime,
            ctime,
            btime,
            is_sparse: ranges.as_ref().is_some_and(|ranges| ranges.iter().any(|range| range.is_sparse)),
            ..FileBuffer::default()
        };
        let uploaded = Uploaded { path: filename, stored_name: store_as, components, accessor, upload_id: id, ..Uploaded::default() };
        Ok(Self {
            sink,
            reader,
            packed: ranges.is_some(),
            ranges,
            template,
            uploaded,
            sent: 0,
            index: Vec::new(),
            sha256: Sha256::new(),
            md5: Md5::new(),
        })
    }

    /// Plain files from the first to the last byte; files with holes range by range, holes left out.
    fn send_content(&mut self, scope: &Scope) -> Result<(), CallError> {
        let Some(ranges) = self.ranges.take() else {
            return self.send_until(scope, u64::MAX).map(drop);
        };
        let stored = ranges.iter().filter(|range| !range.is_sparse).map(|range| range.length).fold(0_u64, u64::saturating_add);
        self.template.stored_size = stored;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for range in ranges {
            let start = self.sent;
            if !range.is_sparse {
                self.reader.seek(SeekFrom::Start(range.offset))?;
                self.send_until(scope, range.length)?;
            }
            self.index.push(ProtoRange {
                original_offset: signed(range.offset),
                length: signed(range.length),
                file_offset: signed(start),
                file_length: signed(self.sent.saturating_sub(start)),
            });
            self.uploaded.size = self.uploaded.size.max(range.offset.saturating_add(range.length));
        }
        Ok(())
    }

    /// Sends at most `limit` bytes from where the reader stands, in pieces.
    fn send_until(&mut self, scope: &Scope, limit: u64) -> Result<(), CallError> {
        let mut left = limit;
        while left > 0 {
            if scope.stopped() {
                return Err(CallError::from("the query was stopped"));
            }
            let mut piece = Vec::new();
            let most = left.min(u64::try_from(PIECE).unwrap_or(u64::MAX));
            (&mut self.reader).take(most).read_to_end(&mut piece)?;
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            if length == 0 {
                break;
            }
            left = left.saturating_sub(length);
            self.send_piece(piece, length)?;
        }
        Ok(())
    }

    fn send_piece(&mut self, piece: Vec<u8>, length: u64) -> Result<(), CallError> {
        self.sha256.update(&piece);
        self.md5.update(&piece);
        let offset = self.sent;
        self.sent = self.sent.saturating_add(length);
        let mut buffer = FileBuffer { offset, data_length: length, ..self.template.clone() };
        if !self.packed {
            buffer.stored_size = self.sent;
        }
        match self.sink.flow.settings.compress.then(|| deflate(&piece)).flatten() {
            Some(stream) => {
                buffer.data = stream.into();
                buffer.uncompressed_length = length;
            }
            None => buffer.data = piece.into(),
        }
        let message = VeloMessage { file_buffer: Some(buffer), ..self.sink.flow.message(TRANSFER) };
        if self.sink.flow.continue_upload(self.sink.action, length, message) { Ok(()) } else { Err(refused()) }
    }

    fn end(mut self) -> Result<Uploaded, CallError> {
        let mut last = FileBuffer { offset: self.sent, stored_size: self.sent, eof: true, ..self.template.clone() };
        if self.template.is_sparse {
            last.index = Some(Index { ranges: std::mem::take(&mut self.index) });
        }
        let message = VeloMessage { file_buffer: Some(last), ..self.sink.flow.message(TRANSFER) };
        if !self.sink.flow.continue_upload(self.sink.action, 0, message) {
            return Err(refused());
        }
        let mut uploaded = self.uploaded;
        uploaded.size = uploaded.size.max(self.sent);
        uploaded.stored_size = self.sent;
        uploaded.sha256 = hex::encode(self.sha256.finish());
        uploaded.md5 = hex::encode(self.md5.finalize());
        Ok(uploaded)
    }
}
