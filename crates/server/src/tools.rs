//! Tools: external files that artifacts need on endpoints. Each is fetched from its address, or from this server under a name that cannot be guessed.

use std::io::Read;

use bytes::Bytes;
use prost::Message;
use talon_acl::{Administer, Permit};
use talon_audit::{Details, Receipt};
use talon_crypto::{Sha256, sha256};
use talon_ids::{OrgId, Permission, Permissions};
use talon_proto::Tool;
use talon_store::{BlockEncoding, ObjectName, RowBlock, Scan, Space};

use crate::ServerError;
use crate::layout::{decode, get};
use crate::org::Org;
use crate::session::Session;

/// The largest file that is served, in bytes, and the pieces in which it is stored.
const MAX_FILE: u64 = 1 << 30;
const PIECE: u64 = 1 << 20;

fn tool_key(name: &str, version: &str) -> Vec<u8> {
    [b"tool\0", name.as_bytes(), &[0], version.as_bytes()].concat()
}

impl Session {
    /// Writes what is known of a tool, in place of what artifacts say.
    ///
    /// # Errors
    /// [`ServerError::Denied`] without `ARTIFACT_WRITER`, [`ServerError::Invalid`] for a tool without a name.
    pub fn set_tool(&self, tool: Tool) -> Result<Tool, ServerError> {
        self.authority().check(Permissions::of(&[Permission::ArtifactWriter]))?;
        let details = Details::new().text("name", &tool.name).text("version", &tool.version).text("url", &tool.url);
        let receipt = self.record("SetToolInfo", details)?;
        self.org().set_tool(receipt, tool)
    }

    /// As [`Session::set_tool`], for administrators, and with the file itself if there is one: it is served by this server then.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::Invalid`] for a file that is too large or has another hash.
    pub fn add_tool(&self, tool: Tool, content: Option<&mut dyn Read>) -> Result<Tool, ServerError> {
        let permit = self.authority().permit::<Administer>()?;
        let details = Details::new().text("name", &tool.name).text("version", &tool.version).text("url", &tool.url);
        let receipt = self.record("inventory_add", details)?;
        self.org().add_tool(&permit, receipt, tool, content)
    }
}

impl Org {
    /// The tools that were written here, by name and version.
    ///
    /// # Errors
    /// When storage fails.
    pub fn tools(&self) -> Result<Vec<Tool>, ServerError> {
        let scan = Scan { prefix: b"tool\0".to_vec(), ..Scan::default() };
        self.reader().scan(self.id(), Space::Settings, &scan)?.iter().map(|(key, value)| decode(Space::Settings, key, value)).collect()
    }

    /// One tool: of this version, or the highest when none is named.
    ///
    /// # Errors
    /// When storage fails.
    pub fn tool(&self, name: &str, version: &str) -> Result<Option<Tool>, ServerError> {
        if !version.is_empty() {
            return get(self.reader(), self.id(), Space::Settings, &tool_key(name, version));
        }
        Ok(self.tools()?.into_iter().filter(|tool| tool.name == name).max_by(|a, b| a.version.cmp(&b.version)))
    }

    fn set_tool(&self, receipt: Receipt, mut tool: Tool) -> Result<Tool, ServerError> {
        drop(receipt);
        if tool.name.is_empty() || tool.name.len() > 256 || tool.name.chars().any(char::is_control) {
            return Err(ServerError::invalid("a tool has a name of 1 to 256 bytes"));
        }
        tool.admin_override = true;
        // Where a file is kept is not for callers to say.
        let old = self.tool(&tool.name, &tool.version)?.unwrap_or_default();
        tool.filestore_path = old.filestore_path;
        tool.serve_urls.clear();
        tool.versions.clear();
        self.put_tool(&tool)?;
        Ok(tool)
    }

    fn put_tool(&self, tool: &Tool) -> Result<(), ServerError> {
        let (org, key, value) = (self.id().clone(), tool_key(&tool.name, &tool.version), tool.encode_to_vec());
        self.submit(move |txn| {
            txn.put(&org, Space::Settings, &key, value);
            Ok(())
        })
        .wait()
    }

    fn add_tool(
        &self,
        permit: &Permit<Administer>,
        receipt: Receipt,
        tool: Tool,
        content: Option<&mut dyn Read>,
    ) -> Result<Tool, ServerError> {
        self.own(permit)?;
        let mut tool = self.set_tool(receipt, tool)?;
        let Some(content) = content else { return Ok(tool) };
        let version = if tool.version.is_empty() { String::new() } else { format!(":{}", tool.version) };
        let nonce = &self.shared().settings.obfuscation_nonce;
        tool.filestore_path = hex::encode(sha256(format!("{nonce}{}{version}{}", tool.name, self.id()).as_bytes()));
        let hash = self.store_tool(&ObjectName::new(["public", &tool.filestore_path]), content)?;
        if !tool.expected_hash.is_empty() && tool.expected_hash != hash {
            tool.invalid_hash.clone_from(&hash);
            self.put_tool(&tool)?;
            return Err(ServerError::invalid(format!("the file has the hash {hash}, and not the one that is expected")));
        }
        tool.hash = hash;
        tool.serve_locally = true;
        let served = |url: &String| format!("{}public/{}", url.replacen("wss://", "https://", 1), tool.filestore_path);
        tool.serve_urls = self.shared().settings.server_urls.iter().map(served).collect();
        tool.serve_url = tool.serve_urls.first().cloned().unwrap_or_default();
        self.put_tool(&tool)?;
        Ok(tool)
    }

    /// Files that anybody may fetch who knows the name are the root organisation's.
    fn store_tool(&self, name: &ObjectName, content: &mut dyn Read) -> Result<String, ServerError> {
        let old = name.clone();
        self.submit(move |txn| Ok(txn.delete_object(&OrgId::root(), &old)?)).wait()?;
        let (mut digest, mut offset) = (Sha256::new(), 0_u64);
        loop {
            let mut piece = Vec::new();
            (&mut *content).take(PIECE).read_to_end(&mut piece).map_err(|error| ServerError::invalid(error.to_string()))?;
            let length = piece.len() as u64;
            if length == 0 && offset > 0 {
                break;
            }
            if offset.saturating_add(length) > MAX_FILE {
                return Err(ServerError::invalid(format!("a tool has at most {MAX_FILE} bytes")));
            }
            digest.update(&piece);
            let (object, data) = (name.clone(), Bytes::from(piece));
            let chunk = RowBlock { plain_len: length, data, count: 0, encoding: BlockEncoding::Plain };
            self.submit(move |txn| Ok(txn.append_upload(&OrgId::root(), &object, offset, chunk)?)).wait()?;
            offset = offset.saturating_add(length);
            if length == 0 {
                break;
            }
        }
        let object = name.clone();
        self.submit(move |txn| Ok(txn.finish_upload(&OrgId::root(), &object)?)).wait()?;
        Ok(hex::encode(digest.finish()))
    }

    /// The variables by which queries on endpoints find a tool (`spec/05` §3.4): what administrators wrote counts, else what the artifact says.
    pub(crate) fn tool_environment(&self, wanted: &Tool) -> Result<Vec<(String, String)>, String> {
        let known = self.tool(&wanted.name, &wanted.version).map_err(|error| error.to_string())?;
        let tool = known.as_ref().unwrap_or(wanted);
        let mut urls = tool.serve_urls.clone();
        if urls.is_empty() && !tool.url.is_empty() {
            urls.push(tool.url.clone());
        }
        let hash = if tool.hash.is_empty() { &tool.expected_hash } else { &tool.hash };
        let filename = if tool.filename.is_empty() {
            urls.first().and_then(|url| url.rsplit('/').next()).unwrap_or(&tool.name).to_owned()
        } else {
            tool.filename.clone()
        };
        let variable = |suffix: &str, value: String| (format!("Tool_{}_{suffix}", wanted.name), value);
        Ok(vec![
            variable("HASH", hash.clone()),
            variable("FILENAME", filename),
            variable("VERSION", tool.version.clone()),
            variable("URL", urls.first().cloned().unwrap_or_default()),
            variable("URLs", serde_json::Value::from(urls).to_string()),
        ])
    }
}
