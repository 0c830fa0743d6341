//! `parse_pe()`: programs of Windows.

use std::io::{Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use goblin::pe::PE;
use goblin::pe::export::Reexport;
use md5::Digest;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Signature, Time, Value};

use crate::accessor;
use crate::files::{buffer_limit, read_up_to};

/// Lists of a program are cut here.
const MAX_ITEMS: usize = 100_000;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("parse_pe", "What the headers of a Windows program say.")
            .args(
                const {
                    &[
                        Arg::required("file", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::optional("base_offset", ArgType::Int, "Where the program begins in the file."),
                    ]
                },
            )
            .version(2),
        parse_pe,
    );
}

fn parse_pe(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let path = call.path("file").ok_or_else(|| CallError::failed("Field file is required"))?;
    let mut reader = accessor::named(scope, &call.string("accessor"))?.open(scope, &path)?;
    reader.seek(SeekFrom::Start(u64::try_from(call.int("base_offset")).unwrap_or(0)))?;
    let content = read_up_to(&mut *reader, buffer_limit(scope), scope)?;
    // The reader is for well-formed programs first; what is hostile must not end the query.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        PE::parse(&content).map(|program| describe(&program, &content)).map_err(|error| error.to_string())
    }));
    match parsed {
        Ok(Ok(row)) => Ok(row.into()),
        Ok(Err(error)) => Err(CallError::failed(error)),
        Err(_) => Err("the program is damaged".into()),
    }
}

fn machine(number: u16) -> String {
    match number {
        0x014c => "IMAGE_FILE_MACHINE_I386".to_owned(),
        0x8664 => "IMAGE_FILE_MACHINE_AMD64".to_owned(),
        0x01c0 => "IMAGE_FILE_MACHINE_ARM".to_owned(),
        0x01c4 => "IMAGE_FILE_MACHINE_ARMNT".to_owned(),
        0xaa64 => "IMAGE_FILE_MACHINE_ARM64".to_owned(),
        0x0200 => "IMAGE_FILE_MACHINE_IA64".to_owned(),
        other => format!("{other:#x}"),
    }
}

fn describe(program: &PE<'_>, content: &[u8]) -> Dict {
    let coff = &program.header.coff_header;
    let header = Dict::new()
        .with("Machine", machine(coff.machine))
        .with("TimeDateStamp", Time::from_unix(coff.time_date_stamp.into()))
        .with("TimeDateStampRaw", i64::from(coff.time_date_stamp))
        .with("Characteristics", i64::from(coff.characteristics))
        .with("ImageBase", i64::try_from(program.image_base).unwrap_or(i64::MAX));
    let pdb = program.debug_data.as_ref().and_then(|debug| debug.codeview_pdb70_debug_info.as_ref());
    let (guid, name) = match pdb {
        Some(pdb) => (
            guid_and_age(&pdb.signature, pdb.age),
            String::from_utf8_lossy(pdb.filename.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned(),
        ),
        None => (String::new(), String::new()),
    };
    let imports: Vec<(String, String)> =
        program.imports.iter().take(MAX_ITEMS).map(|import| (import.dll.to_owned(), import.name.clone().into_owned())).collect();
    let module = program.name.unwrap_or_default();
    let exports = program.exports.iter().take(MAX_ITEMS).filter_map(|export| Some(format!("{module}!{}", export.name?)));
    let forwards = program.exports.iter().take(MAX_ITEMS).filter_map(|export| {
        Some(match export.reexport.as_ref()? {
            Reexport::DLLName { export, lib } => format!("{lib}.{export}"),
            Reexport::DLLOrdinal { ordinal, lib } => format!("{lib}.#{ordinal}"),
        })
    });
    Dict::new()
        .with("FileHeader", header)
        .with("GUIDAge", guid)
        .with("PDB", name)
        .with("Directories", directories(program))
        .with("Sections", Value::list(program.sections.iter().map(section)))
        .with("VersionInformation", version(program))
        .with("Imports", Value::list(imports.iter().map(|(dll, name)| format!("{dll}!{name}"))))
        .with("Exports", Value::list(exports.collect::<Vec<_>>()))
        .with("Forwards", Value::list(forwards.collect::<Vec<_>>()))
        .with("ImpHash", imp_hash(&imports))
        .with("AuthenticodeHash", authenticode(program, content))
}

/// As symbol servers name it: the GUID without dashes, then the age.
fn guid_and_age(guid: &[u8; 16], age: u32) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let digits: String = order.iter().filter_map(|at: &usize| guid.get(*at)).map(|byte| format!("{byte:02X}")).collect();
    format!("{digits}{age:X}")
}

fn directories(program: &PE<'_>) -> Dict {
    let mut found = Dict::new();
    let Some(optional) = &program.header.optional_header else { return found };
    for (kind, directory) in optional.data_directories.dirs().filter(|(_, directory)| directory.size > 0) {
        let name = format!("{kind:?}").trim_end_matches("Table").to_owned();
        let place = Dict::new().with("RVA", i64::from(directory.virtual_address)).with("Size", i64::from(directory.size));
        found.set(Key::from(format!("{name}_Directory")), place);
    }
    found
}

fn section(section: &goblin::pe::section_table::SectionTable) -> Dict {
    let flag = |bit: u32, letter: char| if section.characteristics & bit == 0 { '-' } else { letter };
    let permissions: String = [flag(0x2000_0000, 'x'), flag(0x4000_0000, 'r'), flag(0x8000_0000, 'w')].iter().collect();
    let raw = section.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Dict::new()
        .with("Perm", permissions)
        .with("Name", section.real_name.clone().unwrap_or_else(|| String::from_utf8_lossy(raw).into_owned()))
        .with("FileOffset", i64::from(section.pointer_to_raw_data))
        .with("VMA", i64::from(section.virtual_address))
        .with("RVA", i64::from(section.virtual_address))
        .with("Size", i64::from(section.size_of_raw_data))
}

fn version(program: &PE<'_>) -> Dict {
    let mut found = Dict::new();
    let Some(info) = program.resource_data.as_ref().and_then(|data| data.version_info.as_ref()) else { return found };
    let strings = &info.string_info;
    for (name, value) in [
        ("CompanyName", strings.company_name()),
        ("FileDescription", strings.file_description()),
        ("FileVersion", strings.file_version()),
        ("InternalName", strings.internal_name()),
        ("LegalCopyright", strings.legal_copyright()),
        ("LegalTrademarks", strings.legal_trademarks()),
        ("OriginalFilename", strings.original_filename()),
        ("ProductName", strings.product_name()),
        ("ProductVersion", strings.product_version()),
        ("Comments", strings.comments()),
    ] {
        if let Some(value) = value {
            found.set(name, value.trim_end_matches('\0'));
        }
    }
    found
}

/// The MD5 of the imports in lower case, extensions of libraries left out.
fn imp_hash(imports: &[(String, String)]) -> String {
    if imports.is_empty() {
        return String::new();
    }
    let one = |(dll, name): &(String, String)| {
        let dll = dll.to_lowercase();
        let dll = [".dll", ".ocx", ".sys"].iter().find_map(|end| dll.strip_suffix(end)).unwrap_or(&dll).to_owned();
        let name = name.to_lowercase();
        let name = name.strip_prefix("ordinal ").map_or_else(|| name.clone(), |number| format!("ord{number}"));
        format!("{dll}.{name}")
    };
    hex(&md5::Md5::digest(imports.iter().map(one).collect::<Vec<_>>().join(",")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digests of what a signature covers: all but the checksum and the signature itself.
fn authenticode(program: &PE<'_>, content: &[u8]) -> Dict {
    if content.is_empty() {
        return Dict::new();
    }
    let (mut md5, mut sha1, mut sha256) = (md5::Md5::new(), sha1::Sha1::new(), talon_crypto::Sha256::new());
    for range in program.authenticode_ranges() {
        md5.update(range);
        sha1.update(range);
        sha256.update(range);
    }
    Dict::new().with("MD5", hex(&md5.finalize())).with("SHA1", hex(&sha1.finalize())).with("SHA256", hex(&sha256.finish()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use talon_vql::{Environment, Query, json, parse_statement};

    use super::*;

    /// A program of headers and one section, made by the published format.
    fn program() -> Vec<u8> {
        let mut out = vec![0_u8; 0x400];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &0x80_u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x84, &0x8664_u16.to_le_bytes());
        put(0x86, &1_u16.to_le_bytes());
        put(0x88, &1_590_938_885_u32.to_le_bytes());
        put(0x94, &240_u16.to_le_bytes());
        put(0x96, &0x22_u16.to_le_bytes());
        put(0x98, &0x20b_u16.to_le_bytes());
        put(0x98 + 24, &0x1_4000_0000_u64.to_le_bytes());
        put(0x98 + 32, &0x1000_u32.to_le_bytes());
        put(0x98 + 36, &0x200_u32.to_le_bytes());
        put(0x98 + 56, &0x2000_u32.to_le_bytes());
        put(0x98 + 60, &0x200_u32.to_le_bytes());
        put(0x98 + 108, &16_u32.to_le_bytes());
        put(0x188, b".text\0\0\0");
        put(0x190, &0x10_u32.to_le_bytes());
        put(0x194, &0x1000_u32.to_le_bytes());
        put(0x198, &0x200_u32.to_le_bytes());
        put(0x19c, &0x200_u32.to_le_bytes());
        put(0x1ac, &0x6000_0020_u32.to_le_bytes());
        out
    }

    fn parsed(content: &[u8], members: &str) -> String {
        let scope = Environment::new(Arc::new(crate::registry())).variable("F", Value::str(content)).open();
        let statement = parse_statement(&format!("SELECT parse_pe(file=F, accessor='data'){members} AS X FROM scope()")).unwrap();
        json::encode(Query::new(&scope, &statement).next().unwrap().get("X").unwrap())
    }

    #[test]
    fn headers_and_sections_are_read() {
        expect![[r#"{"Machine":"IMAGE_FILE_MACHINE_AMD64","TimeDateStamp":"2020-05-31T15:28:05Z","TimeDateStampRaw":1590938885,"Characteristics":34,"ImageBase":5368709120}"#]]
            .assert_eq(&parsed(&program(), ".FileHeader"));
        expect![[r#"[{"Perm":"xr-","Name":".text","FileOffset":512,"VMA":4096,"RVA":4096,"Size":512}]"#]]
            .assert_eq(&parsed(&program(), ".Sections"));
        assert_eq!(parsed(&program(), ".AuthenticodeHash.MD5").len(), 34);
    }

    #[test]
    fn hashes_of_imports_follow_the_convention() {
        let imports = [("KERNEL32.dll".to_owned(), "ExitProcess".to_owned()), ("ws2_32.DLL".to_owned(), "ORDINAL 115".to_owned())];
        assert_eq!(imp_hash(&imports), hex(&md5::Md5::digest("kernel32.exitprocess,ws2_32.ord115")));
        assert_eq!(guid_and_age(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], 10), "0403020106050807090A0B0C0D0E0F10A");
    }

    #[test]
    fn damage_is_survived() {
        assert_eq!(parsed(b"MZ no program", ""), "null");
        let whole = program();
        for at in (0..0x200).step_by(3) {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            let _ = parsed(&damaged, "");
            let _ = parsed(&whole[..at], "");
        }
    }
}
