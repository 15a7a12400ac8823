//! The shape of the code: no import circle in any crate, and docs/design.md names tests that exist; `make sizes` prints
//! how large files and functions are.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, ItemMod, ItemUse, UseTree,
    spanned::Spanned,
    visit::{self, Visit},
};

/// Path of a module from the crate's root; the root is empty.
type Module = Vec<String>;

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All Rust files below a directory, but for build outputs.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The module that a file of a crate is; programs beside the library are none.
fn module(source: &Path, file: &Path) -> Option<Module> {
    let relative = file.strip_prefix(source).ok()?.with_extension("");
    let mut names: Module = relative
        .iter()
        .map(|name| name.to_str().unwrap().to_owned())
        .collect();
    match names.last().map(String::as_str)? {
        "main" if names.len() == 1 => return None,
        "lib" if names.len() == 1 => names.clear(),
        "mod" => drop(names.pop()),
        _ if names[0] == "bin" => return None,
        _ => {}
    }
    Some(names)
}

/// Collects the modules of its crate that a file takes something from, tests left out.
struct Imports<'a> {
    here: &'a Module,
    all: &'a BTreeSet<Module>,
    found: BTreeSet<Module>,
}

impl Imports<'_> {
    fn path(&mut self, names: &[String]) {
        let mut target = match names.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.here.clone(),
            Some(child) => {
                // Not from the root of the crate, and a child of this module.
                let mut target = self.here.clone();
                target.push(child.to_owned());
                if !self.all.contains(&target) {
                    return;
                }
                target
            }
            None => return,
        };
        for (at, name) in names.iter().enumerate() {
            match name.as_str() {
                "crate" | "self" => {}
                "super" => drop(target.pop()),
                _ if at == 0 => {}
                name => {
                    let mut deeper = target.clone();
                    deeper.push(name.to_owned());
                    if !self.all.contains(&deeper) {
                        break;
                    }
                    target = deeper;
                }
            }
        }
        if target != *self.here && self.all.contains(&target) {
            self.found.insert(target);
        }
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.path(&with(name.ident.to_string())),
            UseTree::Rename(name) => self.path(&with(name.ident.to_string())),
            UseTree::Glob(_) => self.path(before),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = attribute
            .meta
            .require_list()
            .map(|list| list.tokens.to_string());
        attribute.path().is_ident("cfg") && tokens.is_ok_and(|tokens| tokens.contains("test"))
    })
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if names.len() > 1 {
            self.path(&names);
        }
        visit::visit_path(self, path);
    }
}

/// What each module of a crate imports from the others.
fn imports(source: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    let files: Vec<_> = rust_files(source)
        .into_iter()
        .filter_map(|file| Some((module(source, &file)?, file)))
        .collect();
    let all: BTreeSet<Module> = files.iter().map(|(module, _)| module.clone()).collect();
    files
        .iter()
        .map(|(here, file)| {
            let parsed = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
            let found = BTreeSet::new();
            let mut imports = Imports {
                here,
                all: &all,
                found,
            };
            imports.visit_file(&parsed);
            (here.clone(), imports.found)
        })
        .collect()
}

/// The modules that reach themselves by imports.
fn circles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<String> {
    let reaches_itself = |start: &Module| {
        let mut seen = BTreeSet::new();
        let mut ahead: Vec<_> = imports[start].iter().collect();
        while let Some(next) = ahead.pop() {
            if next == start {
                return true;
            }
            if seen.insert(next) {
                ahead.extend(&imports[next]);
            }
        }
        false
    };
    let modules = imports.keys().filter(|module| reaches_itself(module));
    modules.map(|module| module.join("::")).collect()
}

#[test]
fn no_crate_has_an_import_circle() {
    let manifests = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = manifests.lines().find(|line| line.starts_with("members"));
    let members = members.unwrap().split('"').skip(1).step_by(2);
    let mut found = Vec::new();
    for member in members {
        let imports = imports(&root().join(member).join("src"));
        assert!(!imports.is_empty(), "{member}");
        found.extend(
            circles(&imports)
                .into_iter()
                .map(|module| format!("{member}: {module}")),
        );
    }
    assert!(found.is_empty(), "modules on import circles: {found:#?}");
}

#[test]
fn a_circle_is_found() {
    let crate_of = |files: &[(&str, &str)]| {
        let source = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = source.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        circles(&imports(source.path()))
    };
    let one_way = [
        ("lib.rs", "mod a; mod b; use a::A;"),
        (
            "a.rs",
            "use crate::b::B; #[cfg(test)] mod tests { use crate::c::C; }",
        ),
        ("b.rs", "pub struct B;"),
        ("c/mod.rs", "mod d; fn f() { d::g() }"),
        ("c/d.rs", "use crate::{a::A, b};"),
    ];
    assert_eq!(crate_of(&one_way), Vec::<String>::new());
    let mut back = one_way;
    back[2].1 = "fn f(_: crate::a::A) {}";
    assert_eq!(crate_of(&back), ["a", "b"]);
    let mut child = one_way;
    child[4].1 = "use super::f;";
    assert_eq!(crate_of(&child), ["c", "c::d"]);
}

/// docs/design.md, section 5, names the test of every promise.
#[test]
fn every_test_that_the_design_names_is_there() {
    let texts = rust_files(root()).into_iter().map(fs::read_to_string);
    let text: String = texts.map(Result::unwrap).collect();
    let design = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let names = design
        .split('`')
        .filter(|word| word.matches('_').count() > 3);
    let names: Vec<_> = names
        .filter(|word| word.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()))
        .collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let is_there = text.contains(&format!("fn {name}("));
        assert!(
            is_there,
            "docs/design.md names {name}, but no test is called so"
        );
    }
}

/// Lengths of functions, by name.
#[derive(Default)]
struct Functions(Vec<(usize, String)>);

impl Functions {
    fn count(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let lines = block.span().end().line - signature.span().start().line + 1;
        self.0.push((lines, signature.ident.to_string()));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.count(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.count(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }
}

/// Prints only: the goals are a median below 170 lines, nine of ten files below 450, and 1 % of functions over 60.
#[test]
fn sizes() {
    let mut files = Vec::new();
    let mut functions = Vec::new();
    for path in rust_files(root()) {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        files.push((text.lines().count(), name.clone()));
        let mut found = Functions::default();
        found.visit_file(&syn::parse_file(&text).unwrap());
        let found = found.0.into_iter();
        functions.extend(found.map(|(lines, function)| (lines, format!("{name}: {function}"))));
    }
    files.sort();
    functions.sort();
    println!(
        "{} files: median {} lines (goal below 170), 90th percentile {} (below 450)",
        files.len(),
        files[files.len() / 2].0,
        files[files.len() * 9 / 10].0,
    );
    for (lines, name) in files.iter().rev().take_while(|(lines, _)| *lines >= 450) {
        println!("  {lines:5} {name}");
    }
    let long = functions.iter().filter(|(lines, _)| *lines > 60).count();
    let share = 100.0 * f64::from(u32::try_from(long).unwrap());
    println!(
        "{} functions: {long} over 60 lines, {:.1} % (below 1)",
        functions.len(),
        share / f64::from(u32::try_from(functions.len()).unwrap()),
    );
    for (lines, name) in functions.iter().rev().take(long) {
        println!("  {lines:5} {name}");
    }
}
