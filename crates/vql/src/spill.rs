//! Rows that do not fit into memory: the seam to wherever they go, and their binary form.

use std::io;
use std::sync::Arc;

use crate::dict::{Dict, Key};
use crate::path::{Delegate, OsPath, PathFlavour};
use crate::rows::{RowSource, Rows, StoredQuery};
use crate::scope::Scope;
use crate::shape::Shape;
use crate::time::Time;
use crate::value::{List, MAX_DEPTH, Text, Value};

/// Where a query puts rows that do not fit into memory. The host program has it; without one, such a query ends.
pub trait Spill: Send + Sync {
    /// A fresh store, which is gone when it is dropped.
    ///
    /// # Errors
    /// There is none to be had.
    fn create(&self) -> io::Result<Box<dyn SpillFile>>;
}

/// One store of bytes: written at its end, read anywhere.
pub trait SpillFile: Send + Sync {
    /// Puts `bytes` at the end.
    ///
    /// # Errors
    /// There is no more room.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Fills `buffer` from `offset` on, and says how far; 0 at the end.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

/// How much is gathered before it is written.
const WRITE_AT: usize = 256 << 10;
/// How much is read at a time.
const READ: usize = 64 << 10;
/// Shapes that a run remembers. Rows of further shapes are written with their names.
const MAX_SHAPES: usize = 1000;
/// The longest record.
const MAX_RECORD: usize = 1 << 30;

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a row on disk is damaged")
}

/// Writes records, each of some values.
pub(crate) struct Writer {
    file: Box<dyn SpillFile>,
    encoder: Encoder,
    buffer: Vec<u8>,
    record: Vec<u8>,
    count: u64,
}

impl Writer {
    pub(crate) fn create(spill: &dyn Spill) -> io::Result<Self> {
        Ok(Self { file: spill.create()?, encoder: Encoder::default(), buffer: Vec::new(), record: Vec::new(), count: 0 })
    }

    pub(crate) fn push<'a>(&mut self, values: impl IntoIterator<Item = &'a Value>) -> io::Result<()> {
        self.record.clear();
        for value in values {
            self.encoder.value(&mut self.record, value);
        }
        let length = u32::try_from(self.record.len()).map_err(|_| io::Error::other("a row is too long"))?;
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(&self.record);
        self.count = self.count.saturating_add(1);
        if self.buffer.len() >= WRITE_AT { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.append(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<Run> {
        self.flush()?;
        Ok(Run { file: self.file.into(), count: self.count })
    }
}

/// Records that were written, to be read as often as one likes.
#[derive(Clone)]
pub(crate) struct Run {
    file: Arc<dyn SpillFile>,
    count: u64,
}

impl Run {
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn read(&self) -> Reader {
        Reader { file: self.file.clone(), decoder: Decoder::default(), offset: 0, buffer: Vec::new(), at: 0 }
    }
}

/// Reads the records of a run in order.
pub(crate) struct Reader {
    file: Arc<dyn SpillFile>,
    decoder: Decoder,
    offset: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl Reader {
    /// The next record; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<Value>>> {
        if !self.have(4)? {
            return Ok(None);
        }
        let head = self.buffer.get(self.at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(damaged)?;
        let length = usize::try_from(u32::from_le_bytes(*head)).map_err(|_| damaged())?;
        let whole = length.checked_add(4).filter(|whole| *whole <= MAX_RECORD).ok_or_else(damaged)?;
        if !self.have(whole)? {
            return Err(damaged());
        }
        let end = self.at.saturating_add(whole);
        let record = self.buffer.get(self.at.saturating_add(4)..end).ok_or_else(damaged)?;
        let values = self.decoder.record(record).ok_or_else(damaged)?;
        self.at = end;
        Ok(Some(values))
    }

    /// Whether `wanted` bytes are there, reading as needed.
    fn have(&mut self, wanted: usize) -> io::Result<bool> {
        while self.buffer.len().saturating_sub(self.at) < wanted {
            self.buffer.drain(..self.at);
            self.at = 0;
            let before = self.buffer.len();
            self.buffer.resize(before.saturating_add(READ), 0);
            let got = self.file.read_at(self.offset, self.buffer.get_mut(before..).unwrap_or_default())?;
            self.buffer.truncate(before.saturating_add(got));
            self.offset = self.offset.saturating_add(got as u64);
            if got == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Rows on disk that can be read like those of any stored query.
pub(crate) struct SpilledRows(pub(crate) Run);

impl RowSource for SpilledRows {
    fn open(&self, scope: &Scope) -> Rows {
        let mut reader = self.0.read();
        let scope = scope.clone();
        Rows::from_fn(move || match reader.next() {
            Ok(record) => record.map(|values| Ok(values.into_iter().next().unwrap_or_default())),
            Err(error) => {
                scope.log(format!("ERROR:Rows that were kept on disk cannot be read: {error}"));
                None
            }
        })
    }

    fn depth(&self) -> u16 {
        MAX_DEPTH / 2
    }
}

/// Keeps all `rows`, in memory as long as they fit there, then on disk. `name` is for the log.
pub(crate) fn keep(name: &str, rows: Rows, scope: &Scope) -> io::Result<Value> {
    let spill_at = scope.spill_at();
    let mut held = scope.hold();
    let mut kept: Vec<Value> = Vec::new();
    let mut writer: Option<Writer> = None;
    for row in rows {
        let Ok(row) = row else { break };
        let row = row.materialized(scope);
        if scope.stopped() {
            break;
        }
        if let Some(writer) = &mut writer {
            writer.push([&row])?;
            continue;
        }
        if !held.add(row.weight()) {
            break;
        }
        kept.push(row);
        if held.bytes() > spill_at
            && let Some(spill) = scope.spill()
        {
            scope.log(format!(
                "WARN:Materialize of LET {name}: Expand larger than {} rows, VQL will switch to tempfile backing",
                kept.len()
            ));
            let made = writer.insert(Writer::create(spill.as_ref())?);
            for row in kept.drain(..) {
                made.push([&row])?;
            }
            held.reset(0);
        }
    }
    let Some(writer) = writer else { return Ok(Value::list(kept)) };
    let run = writer.finish()?;
    scope.log(format!("WARN:Materialized {} rows", run.count()));
    Ok(StoredQuery::new(SpilledRows(run)).into())
}

/// A value in binary, for the fuzzer: what [`decode`] gives for it is equal.
#[must_use]
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::default().value(&mut out, value);
    out
}

/// The value that `bytes` are the binary form of. `None` if they are not one.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Value> {
    let mut values = Decoder::default().record(bytes)?.into_iter();
    values.next().filter(|_| values.next().is_none())
}

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const UINT: u8 = 4;
const FLOAT: u8 = 5;
const STR: u8 = 6;
const BYTES: u8 = 7;
const TIME: u8 = 8;
const DICT: u8 = 9;
const LIST: u8 = 10;
const PATH: u8 = 11;
const SHAPED: u8 = 12;
const FOLDS_CASE: u8 = 1;
const HAS_DEFAULT: u8 = 2;

const FLAVOURS: [PathFlavour; 6] =
    [PathFlavour::Linux, PathFlavour::Generic, PathFlavour::Windows, PathFlavour::Ntfs, PathFlavour::Registry, PathFlavour::FileStore];

/// Rows of one shape name their columns once.
#[derive(Default)]
struct Encoder {
    shapes: Vec<Arc<Shape>>,
}

fn number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or(0));
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

impl Encoder {
    fn value(&mut self, out: &mut Vec<u8>, value: &Value) {
        match value {
            Value::Null | Value::Query(_) | Value::Lambda(_) => out.push(NULL),
            Value::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
            Value::Int(value) => {
                out.push(INT);
                number(out, value.cast_unsigned() << 1 ^ (value >> 63).cast_unsigned());
            }
            Value::UInt(value) => {
                out.push(UINT);
                number(out, *value);
            }
            Value::Float(value) => {
                out.push(FLOAT);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Value::Str(text) => {
                out.push(STR);
                bytes(out, text);
            }
            Value::Bytes(data) => {
                out.push(BYTES);
                bytes(out, data);
            }
            Value::Time(time) => {
                out.push(TIME);
                out.extend_from_slice(&time.unix_nanos().to_le_bytes());
            }
            Value::Dict(dict) => self.dict(out, dict),
            Value::List(items) => {
                out.push(LIST);
                number(out, items.len() as u64);
                items.iter().for_each(|item| self.value(out, item));
            }
            Value::Path(path) => {
                out.push(PATH);
                self.path(out, path);
            }
            Value::Lazy(lazy) => match lazy.reduce().reduced() {
                Value::Lazy(_) => out.push(NULL),
                other => self.value(out, &other),
            },
            Value::Object(object) => match object.to_value() {
                Value::Object(_) => out.push(NULL),
                other => self.value(out, &other),
            },
        }
    }

    fn dict(&mut self, out: &mut Vec<u8>, dict: &Dict) {
        if let Some(shape) = dict.shape().filter(|_| dict.is_plain()) {
            let known = self.shapes.iter().position(|known| Arc::ptr_eq(known, shape));
            if known.is_some() || self.shapes.len() < MAX_SHAPES {
                out.push(SHAPED);
                number(out, known.unwrap_or(self.shapes.len()) as u64);
                if known.is_none() {
                    self.shapes.push(shape.clone());
                    number(out, shape.len() as u64);
                    shape.keys().iter().for_each(|key| bytes(out, key.as_bytes()));
                }
                dict.values().for_each(|value| self.value(out, value));
                return;
            }
        }
        out.push(DICT);
        let default = dict.default_value();
        out.push(if dict.folds_case() { FOLDS_CASE } else { 0 } | if default.is_some() { HAS_DEFAULT } else { 0 });
        if let Some(default) = default {
            self.value(out, default);
        }
        number(out, dict.len() as u64);
        for (key, value) in dict {
            bytes(out, key.as_bytes());
            self.value(out, value);
        }
    }

    fn path(&mut self, out: &mut Vec<u8>, path: &OsPath) {
        out.push(FLAVOURS.iter().position(|flavour| *flavour == path.flavour()).and_then(|at| u8::try_from(at).ok()).unwrap_or(0));
        match path.as_literal() {
            Some(text) => {
                out.push(1);
                bytes(out, text);
            }
            None => {
                out.push(0);
                number(out, path.components().len() as u64);
                path.components().iter().for_each(|part| bytes(out, part));
            }
        }
        match path.delegate() {
            None => out.push(0),
            Some(delegate) => {
                out.push(1);
                bytes(out, delegate.accessor.as_bytes());
                bytes(out, delegate.path.as_bytes());
            }
        }
    }
}

#[derive(Default)]
struct Decoder {
    shapes: Vec<Arc<Shape>>,
}

/// What is left of a record.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            value |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length)
    }

    fn string(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    /// A number of things that take at least one byte each.
    fn count(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok().filter(|count| *count <= self.0.len())
    }
}

impl Decoder {
    fn record(&mut self, record: &[u8]) -> Option<Vec<Value>> {
        let mut rest = Rest(record);
        let mut values = Vec::new();
        while !rest.0.is_empty() {
            values.push(self.value(&mut rest, 0)?);
        }
        Some(values)
    }

    fn value(&mut self, rest: &mut Rest<'_>, depth: u16) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        let inner = depth.saturating_add(1);
        Some(match rest.byte()? {
            NULL => Value::Null,
            FALSE => Value::Bool(false),
            TRUE => Value::Bool(true),
            INT => {
                let zigzag = rest.number()?;
                Value::Int((zigzag >> 1).cast_signed() ^ (zigzag & 1).cast_signed().wrapping_neg())
            }
            UINT => Value::UInt(rest.number()?),
            FLOAT => Value::Float(f64::from_le_bytes(rest.array()?)),
            STR => Value::Str(Text::from(rest.bytes()?)),
            BYTES => Value::Bytes(rest.bytes()?.into()),
            TIME => Value::Time(Time::from_unix_nanos(i128::from_le_bytes(rest.array()?))),
            LIST => {
                let count = rest.count()?;
                let mut list = List::new();
                for _ in 0..count {
                    list.push(self.value(rest, inner)?);
                }
                list.into()
            }
            DICT => self.dict(rest, inner)?.into(),
            SHAPED => {
                let at = usize::try_from(rest.number()?).ok()?;
                if at == self.shapes.len() && at < MAX_SHAPES {
                    let count = rest.count()?;
                    let names = (0..count).map(|_| rest.string()).collect::<Option<Vec<_>>>()?;
                    self.shapes.push(Shape::new(names));
                }
                let shape = self.shapes.get(at)?.clone();
                let values = (0..shape.len()).map(|_| self.value(rest, inner)).collect::<Option<Vec<_>>>()?;
                Dict::of_shape(&shape, values).into()
            }
            PATH => Value::from(path(rest)?),
            _ => return None,
        })
    }

    fn dict(&mut self, rest: &mut Rest<'_>, inner: u16) -> Option<Dict> {
        let flags = rest.byte()?;
        let mut dict = Dict::new();
        if flags & HAS_DEFAULT != 0 {
            dict = dict.with_default(self.value(rest, inner)?);
        }
        let count = rest.count()?;
        for _ in 0..count {
            let key = Key::from(rest.string()?);
            let value = self.value(rest, inner)?;
            dict.set(key, value);
        }
        Some(if flags & FOLDS_CASE != 0 { dict.ignoring_case() } else { dict })
    }
}

fn path(rest: &mut Rest<'_>) -> Option<OsPath> {
    let flavour = *FLAVOURS.get(usize::from(rest.byte()?))?;
    let path = match rest.byte()? {
        0 => {
            let count = rest.count()?;
            OsPath::from_components(flavour, (0..count).map(|_| rest.bytes().map(Text::from)).collect::<Option<Vec<_>>>()?)
        }
        1 => OsPath::literal(rest.bytes()?),
        _ => return None,
    };
    Some(match rest.byte()? {
        0 => path,
        1 => path.with_delegate(Some(Delegate { accessor: rest.string()?, path: rest.string()? })),
        _ => return None,
    })
}

/// A store in memory: for tests, and for hosts without a disk that still want a bound of their own.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemorySpill;

#[derive(Default)]
struct MemoryFile(Vec<u8>);

impl Spill for MemorySpill {
    fn create(&self) -> io::Result<Box<dyn SpillFile>> {
        Ok(Box::<MemoryFile>::default())
    }
}

impl SpillFile for MemoryFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Value> {
        let shape = Shape::new(["a", "b"]);
        let row = |at: i64| Value::from(Dict::of_shape(&shape, vec![Value::Int(at), Value::str(&b"\xff\x00"[..])]));
        vec![
            Value::Null,
            Value::Bool(true),
            Value::Int(i64::MIN),
            Value::Int(-1),
            Value::UInt(u64::MAX),
            Value::Float(-0.5),
            Value::Bytes(b"ab"[..].into()),
            Value::Time(Time::from_unix_nanos(-7)),
            row(1),
            row(2),
            Value::list([row(3), Value::from(Dict::new().with("x", 1).with_default(Value::Null).ignoring_case())]),
            Value::from(OsPath::parse("/a/b", PathFlavour::Linux)),
            Value::from(
                OsPath::parse("a\\b", PathFlavour::Windows).with_delegate(Some(Delegate { accessor: "zip".into(), path: "/x.zip".into() })),
            ),
            Value::from(OsPath::literal("some text")),
        ]
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let mut writer = Writer::create(&MemorySpill).unwrap();
        for round in 0..10_000 {
            let all = samples();
            writer.push(all.iter().take(1 + round % all.len())).unwrap();
        }
        let run = writer.finish().unwrap();
        assert_eq!(run.count(), 10_000);
        for _ in 0..2 {
            let mut reader = run.read();
            for round in 0..10_000 {
                let all = samples();
                let expected = format!("{:?}", all.get(..1 + round % all.len()).unwrap());
                assert_eq!(format!("{:?}", reader.next().unwrap().unwrap()), expected);
            }
            assert!(reader.next().unwrap().is_none());
        }
    }

    #[test]
    fn damage_is_noticed_and_does_no_harm() {
        let whole = encode(&Value::list(samples()));
        assert_eq!(format!("{:?}", decode(&whole).unwrap()), format!("{:?}", Value::list(samples())));
        for at in 0..whole.len() {
            assert!(decode(whole.get(..at).unwrap()).is_none());
            let mut bad = whole.clone();
            bad[at] ^= 0x55;
            let _ = decode(&bad);
        }
        assert!(decode(&[LIST; 100_000]).is_none());
        assert!(decode(&[LIST, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_none());
    }
}
