//! Reads the imports between the files of one crate from its sources, by the rule in `main.rs`.
//!
//! Names are resolved as by the compiler, as far as necessary: children, `use` declarations,
//! re-exports and globs are followed to the module that defines the item. Methods, fields and
//! traits that are not named are not found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Expr, Item, ItemMod, ItemUse, Lit, Meta, UseTree, Visibility};

/// Limit for re-exports and globs that lead to one another.
const MAX_DEPTH: usize = 16;

/// What each file imports from which other file: importer → (imported → names).
pub(crate) type Imports = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

/// A source of files: a folder, or the text of a test.
pub(crate) trait Sources {
    /// Returns the text of a file, if it exists.
    fn read(&self, path: &Path) -> Option<String>;
}

/// Files below a folder.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Sources for Folder {
    fn read(&self, path: &Path) -> Option<String> {
        fs::read_to_string(self.0.join(path)).ok()
    }
}

/// Returns the imports of the crate whose root file is `root`.
pub(crate) fn imports(sources: &dyn Sources, root: &str) -> Imports {
    let mut krate = Crate {
        sources,
        modules: Vec::new(),
    };
    let path = PathBuf::from(root);
    let folder = path.parent().expect("a folder").to_owned();
    krate.load(&path, &folder, None);
    krate.imports()
}

/// The item or module that a path leads to.
#[derive(Clone)]
enum Target {
    Module(usize),
    /// An item of the module with this index, by its name there.
    Item(usize, String),
}

struct Use {
    /// The name in this module; none for a glob.
    name: Option<String>,
    path: Vec<String>,
    /// A re-export, which is not an import by itself.
    exports: bool,
}

#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    items: BTreeSet<String>,
    uses: Vec<Use>,
    code: Vec<TokenStream>,
}

struct Crate<'a> {
    sources: &'a dyn Sources,
    modules: Vec<Module>,
}

impl Crate<'_> {
    /// Adds the module in `file`, whose children are in `folder`.
    fn load(&mut self, file: &Path, folder: &Path, parent: Option<usize>) -> usize {
        let text = self.sources.read(file);
        let text = text.unwrap_or_else(|| panic!("no file {}", file.display()));
        let parsed = syn::parse_file(&text);
        let items = parsed
            .unwrap_or_else(|why| panic!("{}: {why}", file.display()))
            .items;
        self.add(file, folder, parent, items)
    }

    fn add(
        &mut self,
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
        items: Vec<Item>,
    ) -> usize {
        let index = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            ..Module::default()
        });
        for item in items {
            if attributes(&item).iter().any(is_for_tests) {
                continue;
            }
            match item {
                Item::Mod(item) => {
                    let name = item.ident.to_string();
                    let child = self.child(file, folder, index, item);
                    self.modules[index].children.insert(name, child);
                }
                Item::Use(item) => add_uses(&item, &mut self.modules[index].uses),
                item => {
                    let module = &mut self.modules[index];
                    module.items.extend(name_of(&item));
                    module.code.push(item.to_token_stream());
                    if let Item::Macro(item) = &item {
                        module.items.extend(defined_by(&item.mac.tokens));
                    }
                }
            }
        }
        index
    }

    fn child(&mut self, file: &Path, folder: &Path, parent: usize, item: ItemMod) -> usize {
        let folder_of_child = folder.join(item.ident.to_string());
        if let Some((_, items)) = item.content {
            return self.add(file, &folder_of_child, Some(parent), items);
        }
        if let Some(path) = item.attrs.iter().find_map(path_attribute) {
            let file = file.parent().expect("a folder").join(path);
            return self.load(&file, &folder_of_child, Some(parent));
        }
        let plain = folder.join(format!("{}.rs", item.ident));
        let file = match self.sources.read(&plain) {
            Some(_) => plain,
            None => folder_of_child.join("mod.rs"),
        };
        self.load(&file, &folder_of_child, Some(parent))
    }

    /// Resolves `name` in a module: to an item, a child, or what a `use` declares.
    fn lookup(&self, module: usize, name: &str, depth: usize) -> Vec<Target> {
        let Some(depth) = depth.checked_sub(1) else {
            return Vec::new();
        };
        let it = &self.modules[module];
        let mut found = Vec::new();
        if it.items.contains(name) {
            found.push(Target::Item(module, name.to_owned()));
        }
        found.extend(it.children.get(name).map(|child| Target::Module(*child)));
        for import in &it.uses {
            match &import.name {
                Some(own) if own == name => {
                    found.extend(self.resolve(module, &import.path, depth));
                }
                Some(_) => {}
                None => {
                    for target in self.resolve(module, &import.path, depth) {
                        if let Target::Module(from) = target
                            && from != module
                        {
                            found.extend(self.lookup(from, name, depth));
                        }
                    }
                }
            }
        }
        found
    }

    /// Resolves a path that is written in `module`, through every re-export.
    fn resolve(&self, module: usize, path: &[String], depth: usize) -> Vec<Target> {
        let Some((first, rest)) = path.split_first() else {
            return Vec::new();
        };
        let mut found = match first.as_str() {
            "crate" => vec![Target::Module(0)],
            "self" => vec![Target::Module(module)],
            "super" => self.modules[module]
                .parent
                .map(Target::Module)
                .into_iter()
                .collect(),
            // `use name::…` with a child or an item of that name; otherwise another crate.
            name => self.lookup(module, name, depth),
        };
        for name in rest {
            found = found
                .into_iter()
                .flat_map(|target| match (target, name.as_str()) {
                    (Target::Module(of), "self") => vec![Target::Module(of)],
                    (Target::Module(of), "super") => self.modules[of]
                        .parent
                        .map(Target::Module)
                        .into_iter()
                        .collect(),
                    (Target::Module(of), name) => self.lookup(of, name, depth),
                    // A variant or an associated item.
                    (item, _) => vec![item],
                })
                .collect();
        }
        found
    }

    /// Returns a macro that is in textual scope: of the module or of one around it.
    fn macro_in_text(&self, module: usize, name: &str) -> Option<Target> {
        let mut next = Some(module);
        while let Some(at) = next {
            if self.modules[at].items.contains(&format!("{name}!")) {
                return Some(Target::Item(at, name.to_owned()));
            }
            next = self.modules[at].parent;
        }
        None
    }

    fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (index, module) in self.modules.iter().enumerate() {
            let of_file = imports.entry(module.file.clone()).or_default();
            let mut paths = BTreeSet::new();
            for import in module.uses.iter().filter(|import| !import.exports) {
                paths.insert(import.path.clone());
            }
            for code in &module.code {
                collect_paths(code.clone(), &mut paths);
            }
            for path in paths {
                let mut targets = self.resolve(index, &path, MAX_DEPTH);
                if let [name] = &path[..]
                    && let Some(name) = name.strip_suffix('!')
                {
                    targets.extend(self.macro_in_text(index, name));
                }
                for target in targets {
                    if let Target::Item(from, name) = target
                        && self.modules[from].file != module.file
                    {
                        let from = self.modules[from].file.clone();
                        of_file.entry(from).or_default().insert(name);
                    }
                }
            }
        }
        imports
    }
}

/// Collects the paths in code, including single names and the beginnings of paths; `name!` is a
/// macro call.
fn collect_paths(code: TokenStream, found: &mut BTreeSet<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut before = String::new();
    let mut tokens = code.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match &token {
            TokenTree::Ident(name) if name == "use" => {
                // In the body of a function.
                let rest = tokens
                    .by_ref()
                    .take_while(|it| !matches!(it, TokenTree::Punct(end) if end.as_char() == ';'));
                let tree: TokenStream = rest.collect();
                if let Ok(tree) = syn::parse2::<UseTree>(tree) {
                    let mut uses = Vec::new();
                    flatten(&tree, Vec::new(), false, &mut uses);
                    found.extend(uses.into_iter().map(|import| import.path));
                }
                path.clear();
                before.clear();
                continue;
            }
            TokenTree::Ident(name) => {
                if !before.ends_with("::") {
                    path.clear();
                }
                // After a single dot it is a field or a method, after two the end of a range.
                let is_member = before.ends_with('.') && !before.ends_with("..");
                if !is_member {
                    path.push(name.to_string());
                    found.insert(path.clone());
                    if matches!(tokens.peek(), Some(TokenTree::Punct(it)) if it.as_char() == '!') {
                        found.insert(vec![format!("{name}!")]);
                    }
                }
                before.clear();
            }
            TokenTree::Punct(it) => before.push(it.as_char()),
            TokenTree::Group(group) => {
                collect_paths(group.stream(), found);
                path.clear();
                before.clear();
            }
            TokenTree::Literal(_) => {
                path.clear();
                before.clear();
            }
        }
    }
}

/// Returns whether an attribute removes its item from every build except a test's.
fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<Meta>()
            .is_ok_and(|it| needs_test(&it))
}

fn needs_test(meta: &Meta) -> bool {
    match meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => {
            let parts = list.parse_args_with(
                syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated,
            );
            parts.is_ok_and(|parts| parts.iter().any(needs_test))
        }
        _ => false,
    }
}

fn path_attribute(attribute: &Attribute) -> Option<String> {
    let Meta::NameValue(pair) = &attribute.meta else {
        return None;
    };
    match &pair.value {
        Expr::Lit(value) if pair.path.is_ident("path") => match &value.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

fn add_uses(item: &ItemUse, found: &mut Vec<Use>) {
    let exports = !matches!(item.vis, Visibility::Inherited);
    flatten(&item.tree, Vec::new(), exports, found);
}

fn flatten(tree: &UseTree, mut path: Vec<String>, exports: bool, found: &mut Vec<Use>) {
    let mut push = |name, path| {
        found.push(Use {
            name,
            path,
            exports,
        });
    };
    match tree {
        UseTree::Path(it) => {
            path.push(it.ident.to_string());
            flatten(&it.tree, path, exports, found);
        }
        UseTree::Group(it) => {
            for tree in &it.items {
                flatten(tree, path.clone(), exports, found);
            }
        }
        UseTree::Name(it) => {
            let mut name = it.ident.to_string();
            if name == "self" {
                name = path.last().expect("a path").clone();
            } else {
                path.push(name.clone());
            }
            push(Some(name), path);
        }
        UseTree::Rename(it) => {
            path.push(it.ident.to_string());
            push(Some(it.rename.to_string()), path);
        }
        UseTree::Glob(_) => push(None, path),
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(it) => &it.attrs,
        Item::Enum(it) => &it.attrs,
        Item::ExternCrate(it) => &it.attrs,
        Item::Fn(it) => &it.attrs,
        Item::Impl(it) => &it.attrs,
        Item::Macro(it) => &it.attrs,
        Item::Mod(it) => &it.attrs,
        Item::Static(it) => &it.attrs,
        Item::Struct(it) => &it.attrs,
        Item::Trait(it) => &it.attrs,
        Item::Type(it) => &it.attrs,
        Item::Union(it) => &it.attrs,
        Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

/// Returns the names that an item defines. A macro has two: `name!` for calls in its textual scope,
/// `name` for `use`.
fn name_of(item: &Item) -> Vec<String> {
    let name = match item {
        Item::Const(it) => &it.ident,
        Item::Enum(it) => &it.ident,
        Item::Fn(it) => &it.sig.ident,
        Item::Static(it) => &it.ident,
        Item::Struct(it) => &it.ident,
        Item::Trait(it) => &it.ident,
        Item::Type(it) => &it.ident,
        Item::Union(it) => &it.ident,
        Item::Macro(it) => {
            let names = it.ident.iter();
            return names
                .flat_map(|name| [name.to_string(), format!("{name}!")])
                .collect();
        }
        _ => return Vec::new(),
    };
    vec![name.to_string()]
}

/// Returns the items that a macro call defines, as far as its text shows them: `struct Name`, `enum
/// Name`.
fn defined_by(call: &TokenStream) -> Vec<String> {
    const KEYWORDS: [&str; 6] = ["struct", "enum", "trait", "type", "fn", "const"];
    let mut names = Vec::new();
    let mut after_keyword = false;
    for token in call.clone() {
        let TokenTree::Ident(name) = token else {
            after_keyword = false;
            continue;
        };
        let name = name.to_string();
        if after_keyword {
            names.push(name.clone());
        }
        after_keyword = KEYWORDS.contains(&name.as_str());
    }
    names
}
