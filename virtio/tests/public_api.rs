//! The public interface of both ends, as text, compared with a snapshot: changes show in the diff
//! of `public_api.txt` (updated under `UPDATE_PUBLIC_API=1`). It also checks a rule: no descriptor
//! and no ring pointer in any signature.
//!
//! The compiler's `unreachable_pub` lint ensures that every `pub` item is public. Tier: quick.

use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Attribute, Item, ItemImpl, Visibility};

const SNAPSHOT: &str = "tests/public_api.txt";

/// Modules that are left out: the wire structures, which are descriptors, and memory for tests.
const NOT_LISTED: [&str; 3] = ["spec", "testing", "testbed"];

/// Types that must not be in a signature: the internals of a ring, by type or by pointer.
const INSIDES: [&str; 12] = [
    "Descriptor",
    "Descs",
    "Cell",
    "Cells",
    "Tail",
    "Desc",
    "UsedElem",
    "DriverRing",
    "DeviceRing",
    "AtomicU16",
    "AtomicU32",
    "AtomicU64",
];

/// Signatures that may have pointers: a caller's memory becomes a buffer, a region, a window or
/// registers, and a validated guest buffer is read and written.
const OWN_MEMORY: [&str; 6] = [
    "fn memory(ptr: NonNull<u8>",
    "fn from_raw(ptr: NonNull<u8>",
    "fn new(start: NonNull<u8>",
    "fn map(&mut self, ptr: NonNull<u8>",
    "fn shared(&self, ptr: NonNull<u8>",
    "fn new(guest: u64, len: u64, host: *mut u8",
];
const BUFFER: &str = "fn as_ptr(&self) -> *mut u8";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    let stem = path.file_stem().unwrap().to_string_lossy();
    if stem == "tests" || NOT_LISTED.contains(&&*stem) {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), found);
        }
    } else {
        found.push(path.to_owned());
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|it| it.path().is_ident("cfg"))
}

/// Returns whether an item of an unlisted kind is public and would have to be listed.
fn says_pub(item: &Item) -> bool {
    match item {
        Item::Static(it) => is_public(&it.vis),
        Item::Union(it) => is_public(&it.vis),
        Item::TraitAlias(it) => is_public(&it.vis),
        Item::ExternCrate(it) => is_public(&it.vis),
        // Inline modules are listed here, modules in files with their file.
        Item::Mod(it) => is_public(&it.vis) && it.content.is_some(),
        Item::Macro(it) => it.attrs.iter().any(|it| it.path().is_ident("macro_export")),
        Item::ForeignMod(_) | Item::Verbatim(_) => true,
        _ => false,
    }
}

/// Formats tokens as text, with spaces for readability.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" ,", ","),
        (" ;", ";"),
        (" :: ", "::"),
        (":: ", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        ("& ", "&"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" : ", ": "),
        ("' ", "'"),
        (" <", "<"),
        ("[ ", "["),
        (" ]", "]"),
        (" ?", "?"),
        ("* mut", "*mut"),
        ("* const", "*const"),
    ] {
        text = text.replace(from, to);
    }
    text.replace("->", "-> ")
        .replace("->  ", "-> ")
        .replace(">Fn", "> Fn")
}

struct Api {
    lines: Vec<String>,
    /// Names of public types: implementations for other types are not listed.
    types: Vec<String>,
    /// The macros of this crate: name and body.
    macros: Vec<(String, String)>,
}

impl Api {
    fn line(&mut self, depth: usize, line: &str) {
        self.lines
            .push(format!("{}{}", "    ".repeat(depth), line.trim()));
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Fn(it) if is_public(&it.vis) => self.line(1, &text(&it.sig)),
            Item::Const(it) if is_public(&it.vis) => {
                self.line(1, &format!("const {}: {}", it.ident, text(&it.ty)));
            }
            Item::Struct(it) if is_public(&it.vis) => {
                self.line(1, &format!("struct {}{}", it.ident, text(&it.generics)));
                for field in it.fields.iter().filter(|field| is_public(&field.vis)) {
                    let name = field
                        .ident
                        .as_ref()
                        .map_or_else(String::new, ToString::to_string);
                    self.line(2, &format!("{name}: {}", text(&field.ty)));
                }
            }
            Item::Enum(it) if is_public(&it.vis) => {
                self.line(1, &format!("enum {}{}", it.ident, text(&it.generics)));
                for variant in &it.variants {
                    let fields = variant.fields.iter().map(|field| {
                        let name = field.ident.as_ref().map(|name| format!("{name}: "));
                        name.unwrap_or_default() + &text(&field.ty)
                    });
                    let fields = fields.collect::<Vec<_>>().join(", ");
                    self.line(2, &format!("{}({fields})", variant.ident).replace("()", ""));
                }
            }
            Item::Trait(it) if is_public(&it.vis) => {
                let unsafety = if it.unsafety.is_some() { "unsafe " } else { "" };
                self.line(
                    1,
                    &format!("{unsafety}trait {}: {}", it.ident, text(&it.supertraits)),
                );
                for item in &it.items {
                    match item {
                        syn::TraitItem::Fn(it) => self.line(2, &text(&it.sig)),
                        syn::TraitItem::Const(it) => {
                            self.line(2, &format!("const {}: {}", it.ident, text(&it.ty)));
                        }
                        syn::TraitItem::Type(it) => {
                            self.line(2, &format!("type {}: {}", it.ident, text(&it.bounds)));
                        }
                        other => self.line(2, &text(other)),
                    }
                }
            }
            Item::Impl(it) => self.implementation(it),
            Item::Use(it) if is_public(&it.vis) => self.line(1, &text(it)),
            Item::Type(it) if is_public(&it.vis) => self.line(1, &text(it)),
            other => assert!(!says_pub(other), "not listed: {}", text(other)),
        }
    }

    fn implementation(&mut self, it: &ItemImpl) {
        let of = it.trait_.as_ref().map(|(_, path, _)| text(path) + " for ");
        let own = text(&it.self_ty);
        let name = own.split('<').next().unwrap_or_default();
        let is_trait = of.is_some() && self.types.iter().any(|it| it == name);
        let head = format!(
            "impl{} {}{}",
            text(&it.generics),
            of.unwrap_or_default(),
            own
        );
        let mut functions = Vec::new();
        for item in &it.items {
            match item {
                syn::ImplItem::Fn(it) if is_public(&it.vis) => functions.push(text(&it.sig)),
                syn::ImplItem::Const(it) if is_public(&it.vis) => {
                    functions.push(format!("const {}: {}", it.ident, text(&it.ty)));
                }
                syn::ImplItem::Type(it) if is_trait => functions.push(text(it)),
                syn::ImplItem::Macro(it) if it.mac.tokens.is_empty() => {
                    functions.extend(self.defined(&it.mac))
                }
                _ => {}
            }
        }
        if is_trait || !functions.is_empty() {
            self.line(1, &head);
        }
        for function in functions {
            self.line(2, &function);
        }
    }

    /// Returns the public functions that a macro of this crate without arguments defines.
    fn defined(&self, mac: &syn::Macro) -> Vec<String> {
        let name = mac.path.get_ident().expect("a macro of ours").to_string();
        let found = self.macros.iter().find(|it| it.0 == name);
        let body = &found.unwrap_or_else(|| panic!("no macro {name}!")).1;
        let body: ItemImpl = syn::parse_str(&format!("impl It {body}")).unwrap();
        let functions = body.items.iter().filter_map(|item| match item {
            syn::ImplItem::Fn(it) if is_public(&it.vis) => Some(text(&it.sig)),
            _ => None,
        });
        functions.collect()
    }
}

/// Returns the name of a macro and its expansion, which is in braces.
fn macro_of(item: &Item) -> Option<(String, String)> {
    let Item::Macro(it) = item else { return None };
    let mut tokens = it.mac.tokens.clone().into_iter().map(|it| it.to_string());
    let body = tokens.find(|text| text.starts_with('{'))?;
    Some((it.ident.as_ref()?.to_string(), body))
}

fn api() -> Vec<String> {
    let mut found = Vec::new();
    files(&root().join("src"), &mut found);
    found.sort();
    let parse = |path: &PathBuf| syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap();
    let sources: Vec<_> = found.iter().map(parse).collect();
    let items = sources.iter().flat_map(|source| &source.items);
    let types = items.filter_map(|item| match item {
        Item::Struct(it) if is_public(&it.vis) => Some(it.ident.to_string()),
        Item::Enum(it) if is_public(&it.vis) => Some(it.ident.to_string()),
        _ => None,
    });
    let mut api = Api {
        lines: Vec::new(),
        types: types.collect(),
        macros: sources
            .iter()
            .flat_map(|source| source.items.iter().filter_map(macro_of))
            .collect(),
    };
    for (path, source) in found.iter().zip(&sources) {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let before = api.lines.len();
        api.line(0, &name);
        for item in &source.items {
            let attributes = match item {
                Item::Mod(it) => &it.attrs,
                Item::Impl(it) => &it.attrs,
                _ => &Vec::new(),
            };
            if !is_test(attributes) {
                api.item(item);
            }
        }
        if api.lines.len() == before + 1 {
            api.lines.pop();
        }
    }
    api.lines
}

#[test]
fn the_public_interface_is_what_it_was() {
    let now = api().join("\n") + "\n";
    let path = root().join(SNAPSHOT);
    if std::env::var_os("UPDATE_PUBLIC_API").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let before = fs::read_to_string(&path).unwrap();
    let differs = before
        .lines()
        .zip(now.lines())
        .find(|(before, now)| before != now);
    assert!(
        before == now,
        "the public interface changed, first at {differs:?}; if that is meant, \
         run with UPDATE_PUBLIC_API=1 and look at the diff of {SNAPSHOT}"
    );
}

#[test]
fn no_descriptor_or_ring_pointer_is_in_any_signature() {
    for line in api() {
        let words = line.split(|it: char| !it.is_alphanumeric() && it != '_');
        let inside = words.clone().find(|word| INSIDES.contains(word));
        assert_eq!(inside, None, "{line}");
        if line.contains("NonNull") || line.contains('*') {
            let own = OWN_MEMORY.iter().any(|own| line.contains(own));
            assert!(own || line.trim() == BUFFER, "{line}");
        }
    }
}
