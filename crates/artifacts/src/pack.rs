//! Packs: folders and zip files of definitions, as deployments keep them. The one part of this crate that reads files.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::yaml::MAX_TEXT;
use crate::{ArtifactError, Definition, Layer, Repository};

/// The most files of one pack.
const MAX_FILES: usize = 20_000;
/// The most bytes of all definitions of one pack.
const MAX_BYTES: u64 = 256 << 20;
/// The deepest folder of a pack.
const MAX_DEPTH: usize = 32;

/// The texts of a pack, each with the name of its file, in the order of the names.
#[derive(Debug, Default)]
pub struct Pack {
    texts: Vec<(PathBuf, String)>,
    bytes: u64,
}

impl Pack {
    /// Reads a folder with all that is below it, a zip file, or one definition. Only files called `*.yaml` or `*.yml` count; links to folders are not
    /// followed.
    ///
    /// # Errors
    /// [`ArtifactError::Pack`]: it cannot be read, or is larger than a pack may be.
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        let mut pack = Self::default();
        let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        if metadata.is_dir() {
            pack.add_folder(path, 0)?;
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("zip")) {
            pack.add_zip(path)?;
        } else {
            pack.add_file(path)?;
        }
        Ok(pack)
    }

    /// File and text of each definition.
    #[must_use]
    pub fn texts(&self) -> &[(PathBuf, String)] {
        &self.texts
    }

    /// The definitions that are sound, and what is wrong with the others.
    #[must_use]
    pub fn definitions(&self) -> (Vec<Definition>, Vec<(PathBuf, ArtifactError)>) {
        let (mut sound, mut refused) = (Vec::new(), Vec::new());
        for (path, text) in &self.texts {
            match Definition::from_yaml(text) {
                Ok(definition) => sound.push(definition),
                Err(error) => refused.push((path.clone(), error)),
            }
        }
        (sound, refused)
    }

    /// Adds what is sound to a repository, and gives what was refused.
    pub fn add_to(&self, repository: &Repository, layer: Layer) -> Vec<(PathBuf, ArtifactError)> {
        let mut refused = Vec::new();
        for (path, text) in &self.texts {
            if let Err(error) = Definition::from_yaml(text).and_then(|definition| repository.set(definition, layer)) {
                refused.push((path.clone(), error));
            }
        }
        refused
    }

    fn add_folder(&mut self, folder: &Path, depth: usize) -> Result<(), ArtifactError> {
        if depth > MAX_DEPTH {
            return Err(ArtifactError::Pack { path: folder.to_owned(), problem: format!("folders are nested deeper than {MAX_DEPTH}") });
        }
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(|error| unreadable(folder, &error))?;
        entries.sort_by_key(fs::DirEntry::path);
        for entry in entries {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_folder(&path, depth.saturating_add(1))?;
            } else if is_definition(&path) && fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
                self.add_file(&path)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ArtifactError> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        self.add_text(path, path, file)
    }

    fn add_zip(&mut self, path: &Path) -> Result<(), ArtifactError> {
        let broken = |problem: zip::result::ZipError| ArtifactError::Pack { path: path.to_owned(), problem: problem.to_string() };
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(broken)?;
        let names = archive.file_names().map(|name| name.map(std::borrow::Cow::into_owned)).collect::<Result<Vec<String>, _>>();
        let mut names = names.map_err(broken)?;
        names.retain(|name| is_definition(Path::new(name)));
        names.sort();
        for name in names {
            let member = archive.by_name(&name).map_err(broken)?;
            self.add_text(&path.join(&name), path, member)?;
        }
        Ok(())
    }

    fn add_text(&mut self, name: &Path, pack: &Path, content: impl Read) -> Result<(), ArtifactError> {
        let mut text = Vec::new();
        content.take(MAX_TEXT as u64 + 1).read_to_end(&mut text).map_err(|error| unreadable(name, &error))?;
        self.bytes = self.bytes.saturating_add(text.len() as u64);
        let too_large = |problem: String| ArtifactError::Pack { path: pack.to_owned(), problem };
        if self.texts.len() >= MAX_FILES {
            return Err(too_large(format!("it has more than {MAX_FILES} definitions")));
        }
        if self.bytes > MAX_BYTES {
            return Err(too_large(format!("its definitions have more than {MAX_BYTES} bytes")));
        }
        // A text that is not UTF-8 is refused as YAML, with its place.
        self.texts.push((name.to_owned(), String::from_utf8_lossy(&text).into_owned()));
        Ok(())
    }
}

fn is_definition(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("yaml") || extension.eq_ignore_ascii_case("yml"))
}

fn unreadable(path: &Path, error: &io::Error) -> ArtifactError {
    ArtifactError::Pack { path: path.to_owned(), problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ONE: &str = "name: Pack.One\nsources:\n- query: SELECT 1 FROM scope()\n";
    const BROKEN: &str = "name: Pack.Broken\nsources:\n- query: SELECT\n";

    fn names(pack: &Pack) -> (Vec<String>, usize) {
        let (sound, refused) = pack.definitions();
        (sound.iter().map(|definition| definition.name().to_string()).collect(), refused.len())
    }

    #[test]
    fn folders_and_zip_files_are_packs() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("pack/deep/er")).unwrap();
        fs::write(root.join("pack/deep/er/One.yaml"), ONE).unwrap();
        fs::write(root.join("pack/Two.YML"), ONE.replace("One", "Two")).unwrap();
        fs::write(root.join("pack/Broken.yaml"), BROKEN).unwrap();
        fs::write(root.join("pack/README.md"), "no definition").unwrap();
        std::os::unix::fs::symlink(root.join("pack"), root.join("pack/deep/loop")).unwrap();
        let pack = Pack::read(&root.join("pack")).unwrap();
        assert_eq!(names(&pack), (vec!["Pack.Two".to_owned(), "Pack.One".to_owned()], 1));

        let mut writer = zip::ZipWriter::new(File::create(root.join("pack.zip")).unwrap());
        for (name, text) in [("definitions/One.yaml", ONE), ("definitions/Broken.yaml", BROKEN), ("x.txt", "no")] {
            writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        let zipped = Pack::read(&root.join("pack.zip")).unwrap();
        assert_eq!(names(&zipped), (vec!["Pack.One".to_owned()], 1));

        let repository = Repository::with_built_ins();
        let refused = pack.add_to(&repository, Layer::Configured);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].0.ends_with("Broken.yaml"));
        assert_eq!(repository.entry("Pack.One").unwrap().layer, Layer::Configured);
        assert!(repository.set(Definition::from_yaml(ONE).unwrap(), Layer::Custom).is_err(), "users cannot change it");
        assert_eq!(names(&Pack::read(&root.join("pack/Two.YML")).unwrap()).0, ["Pack.Two"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Pack::read(&folder.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
        fs::write(folder.path().join("no.zip"), "no zip").unwrap();
        assert!(Pack::read(&folder.path().join("no.zip")).is_err());
        let mut deep = folder.path().join("deep");
        (0..=MAX_DEPTH).for_each(|_| deep.push("d"));
        fs::create_dir_all(&deep).unwrap();
        assert!(Pack::read(&folder.path().join("deep")).unwrap_err().to_string().contains("deeper"));
    }

    #[test]
    fn a_zip_that_unpacks_to_too_much_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.zip");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        writer.start_file("bomb.yaml", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(&vec![b' '; 3 * MAX_TEXT]).unwrap();
        writer.finish().unwrap();
        let pack = Pack::read(&path).unwrap();
        assert_eq!(pack.texts()[0].1.len(), MAX_TEXT + 1);
        assert!(pack.definitions().1[0].1.to_string().contains("larger than"));
    }
}
