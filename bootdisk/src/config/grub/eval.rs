//! Runs commands within limits and collects the menu.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;

use super::lex::{Part, Word};
use super::parse::{Block, Command, Malformed, parse};
use crate::config::bls;
use crate::error::{Error, Result};

/// Commands that a script may run in all, its menu entries included.
const MAX_STEPS: u32 = 100_000;
/// How deep blocks, functions and files may be nested at run time.
const MAX_DEPTH: u32 = 48;
/// The longest sum of a command's arguments, in bytes.
const MAX_ARGUMENTS: usize = 64 * 1024;
/// All variables' names and values, in bytes.
const MAX_VARIABLES: usize = 1 << 20;
/// Entries of a menu.
const MAX_ITEMS: usize = 1024;

/// What a script asks of the disk. A device is named as in "hd0,gpt1", without parentheses.
pub(crate) trait Host {
    /// Takes a step from the budget.
    fn step(&self) -> Result<()>;

    /// The device that `search` finds.
    fn search(&self, key: SearchKey, value: &str) -> Result<Option<String>>;

    /// The size of a file, or nothing for a directory; nothing at all if it doesn't exist.
    fn stat(&self, device: &str, path: &str) -> Result<Option<Option<u64>>>;

    /// The text of a file, if it exists.
    fn text(&self, device: &str, path: &str) -> Result<Option<String>>;

    /// What `probe` says of a device.
    fn probe(&self, device: &str, what: SearchKey) -> Option<String>;

    /// Boot Loader Specification entries of a device, in the menu's order.
    fn entries(&self, device: &str, folder: Option<&str>) -> Result<Vec<bls::Entry>>;
}

/// What `search` goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SearchKey {
    Uuid,
    Label,
    File,
}

/// Why a script has been stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The disk cannot be read, or the budget is used up.
    Error(Error),
    /// It does not end, or grows, beyond its limits.
    Endless(&'static str),
    /// It cannot be parsed.
    Malformed(&'static str),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.0)
    }
}

/// What happens after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    /// Leaves this many loops.
    Break(u32),
    /// Goes on with the loop this many levels up.
    Continue(u32),
    Return,
    /// Ends everything.
    Exit,
}

/// A file that a script names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) device: String,
    pub(crate) path: String,
}

/// What an entry has loaded when it has been run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) kernel: Option<Named>,
    /// The kernel as the script has it, which GRUB passes on as `BOOT_IMAGE=`.
    pub(crate) image: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) initrds: Vec<Named>,
    /// Something else that it starts, or needs.
    pub(crate) foreign: Option<String>,
}

/// What choosing a menu entry does.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Run(Block),
    Open(Block),
    Entry(Box<bls::Entry>, String),
}

/// A menu entry.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(super) action: Action,
    pub(super) arguments: Vec<String>,
}

impl Item {
    /// Whether it opens another menu.
    pub(crate) fn is_submenu(&self) -> bool {
        matches!(self.action, Action::Open(_))
    }

    /// The Boot Loader Specification entry that it is.
    pub(crate) fn entry(&self) -> Option<(&bls::Entry, &str)> {
        match &self.action {
            Action::Entry(entry, device) => Some((entry, device)),
            _ => None,
        }
    }
}

/// An interpreter with its variables, functions and menu.
#[derive(Clone)]
pub(crate) struct Machine<'h> {
    pub(super) host: &'h dyn Host,
    variables: BTreeMap<String, String>,
    variables_size: usize,
    functions: BTreeMap<String, Block>,
    pub(super) arguments: Vec<String>,
    pub(super) items: Vec<Item>,
    pub(super) boot: Boot,
    /// Whether the last command succeeded.
    pub(super) ok: bool,
    /// Shared by the machines that run menu entries.
    steps: Rc<Cell<u32>>,
    depth: u32,
}

impl fmt::Debug for Machine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("variables", &self.variables)
            .finish_non_exhaustive()
    }
}

impl<'h> Machine<'h> {
    /// Returns an interpreter as GRUB starts it, with its own folder on `device`.
    pub(crate) fn new(host: &'h dyn Host, device: &str, folder: &str) -> Self {
        let mut machine = Self {
            host,
            variables: BTreeMap::new(),
            variables_size: 0,
            functions: BTreeMap::new(),
            arguments: Vec::new(),
            items: Vec::new(),
            boot: Boot::default(),
            ok: true,
            steps: Rc::new(Cell::new(0)),
            depth: 0,
        };
        let prefix = alloc::format!("({device}){folder}");
        // There is no firmware, so it is not "efi".
        for (name, value) in [
            ("root", device),
            ("prefix", &prefix),
            ("cmdpath", &prefix),
            ("config_directory", &prefix),
            ("grub_cpu", "i386"),
            ("grub_platform", "pc"),
            ("feature_menuentry_id", "y"),
            ("feature_menuentry_options", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_default_font_path", "y"),
            ("feature_all_video_module", "y"),
            ("feature_timeout_style", "y"),
            ("feature_200_final", "y"),
            ("feature_chainloader_bpb", "y"),
            ("feature_ntldr", "y"),
            ("feature_nativedisk_cmd", "y"),
        ] {
            let kept = machine.set(name, value);
            debug_assert!(kept.is_ok());
        }
        machine
    }

    /// Runs a script.
    pub(crate) fn run(&mut self, script: &str) -> core::result::Result<(), Stop> {
        self.execute_text(script).map(|_| ())
    }

    /// The menu so far.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    /// A variable's value; empty if it is not set.
    pub(crate) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Runs a menu entry. Returns what it loads.
    pub(crate) fn choose(&self, item: &Item) -> core::result::Result<Boot, Stop> {
        let (Action::Run(block), mut machine) = (&item.action, self.inner(item)) else {
            return Ok(Boot::default());
        };
        machine.execute(block)?;
        Ok(machine.boot)
    }

    /// Opens a submenu. Returns the interpreter that has its items.
    pub(crate) fn open(&self, item: &Item) -> core::result::Result<Self, Stop> {
        let mut machine = self.inner(item);
        if let Action::Open(block) = &item.action {
            machine.execute(block)?;
        }
        Ok(machine)
    }

    fn inner(&self, item: &Item) -> Self {
        Self {
            arguments: item.arguments.clone(),
            items: Vec::new(),
            boot: Boot::default(),
            depth: 0,
            ..self.clone()
        }
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> core::result::Result<(), Stop> {
        let old = self
            .variables
            .get(name)
            .map(|old| old.len().saturating_add(name.len()));
        let new = name.len().saturating_add(value.len());
        let size = self
            .variables_size
            .saturating_sub(old.unwrap_or(0))
            .saturating_add(new);
        if size > MAX_VARIABLES {
            return Err(Stop::Endless("its variables have more than 1 MiB"));
        }
        self.variables_size = size;
        self.variables.insert(name.to_string(), value.to_string());
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(value) = self.variables.remove(name) {
            let size = name.len().saturating_add(value.len());
            self.variables_size = self.variables_size.saturating_sub(size);
        }
    }

    pub(super) fn add_item(&mut self, item: Item) -> core::result::Result<(), Stop> {
        if self.items.len() >= MAX_ITEMS {
            return Err(Stop::Endless("its menu has more than 1024 entries"));
        }
        self.items.push(item);
        Ok(())
    }

    /// Parses and runs a script in this context.
    pub(super) fn execute_text(&mut self, script: &str) -> core::result::Result<Flow, Stop> {
        let block = parse(script)?;
        self.execute(&block)
    }

    pub(super) fn execute(&mut self, block: &Block) -> core::result::Result<Flow, Stop> {
        if self.depth >= MAX_DEPTH {
            return Err(Stop::Endless(
                "it nests blocks, functions or files more than 48 deep",
            ));
        }
        self.depth = self.depth.saturating_add(1);
        let mut flow = Flow::Next;
        for command in block.iter() {
            flow = self.command(command)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(flow)
    }

    fn step(&self) -> core::result::Result<(), Stop> {
        let steps = self.steps.get().saturating_add(1);
        self.steps.set(steps);
        if steps > MAX_STEPS {
            return Err(Stop::Endless("it has not ended after 100000 commands"));
        }
        Ok(self.host.step()?)
    }

    fn command(&mut self, command: &Command) -> core::result::Result<Flow, Stop> {
        self.step()?;
        match command {
            Command::Simple(words, block) => self.simple(words, block.as_ref()),
            Command::Not(inner) => {
                let flow = self.command(inner)?;
                self.ok = !self.ok;
                Ok(flow)
            }
            Command::If(arms, otherwise) => self.condition(arms, otherwise),
            Command::For(name, words, body) => {
                for value in self.expand(words)? {
                    self.step()?;
                    self.set(name, &value)?;
                    if let Some(flow) = self.round(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            Command::While(truth, condition, body) => self.repetition(*truth, condition, body),
            Command::Function(name, body) => {
                self.functions.insert(name.clone(), Rc::clone(body));
                self.ok = true;
                Ok(Flow::Next)
            }
        }
    }

    fn condition(
        &mut self,
        arms: &[(Block, Block)],
        otherwise: &Block,
    ) -> core::result::Result<Flow, Stop> {
        for (condition, body) in arms {
            let flow = self.execute(condition)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
            if self.ok {
                return self.execute(body);
            }
        }
        self.ok = true;
        self.execute(otherwise)
    }

    fn repetition(
        &mut self,
        truth: bool,
        condition: &Block,
        body: &Block,
    ) -> core::result::Result<Flow, Stop> {
        loop {
            // An empty condition and body take a step, too.
            self.step()?;
            let flow = self.execute(condition)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
            if self.ok != truth {
                self.ok = true;
                return Ok(Flow::Next);
            }
            if let Some(flow) = self.round(body)? {
                return Ok(flow);
            }
        }
    }

    /// Runs a loop's body once. Returns how to go on if the loop is left.
    fn round(&mut self, body: &Block) -> core::result::Result<Option<Flow>, Stop> {
        Ok(match self.execute(body)? {
            Flow::Next | Flow::Continue(0 | 1) => None,
            Flow::Break(0 | 1) => Some(Flow::Next),
            Flow::Break(more) => Some(Flow::Break(more.saturating_sub(1))),
            Flow::Continue(more) => Some(Flow::Continue(more.saturating_sub(1))),
            flow => Some(flow),
        })
    }

    fn simple(
        &mut self,
        words: &[Word],
        block: Option<&Block>,
    ) -> core::result::Result<Flow, Stop> {
        let words = self.expand(words)?;
        let Some((name, arguments)) = words.split_first() else {
            return block.map_or(Ok(Flow::Next), |block| self.execute(block));
        };
        if let Some(flow) = self.builtin(name, arguments, block)? {
            return Ok(flow);
        }
        if let Some(body) = self.functions.get(name).cloned() {
            return self.call(&body, arguments);
        }
        self.ok = true;
        match name.split_once('=') {
            Some((name, value)) if !name.is_empty() => self.set(name, value)?,
            // Anything else has nothing to do with what is booted.
            _ => {}
        }
        Ok(Flow::Next)
    }

    fn call(&mut self, body: &Block, arguments: &[String]) -> core::result::Result<Flow, Stop> {
        let outer = core::mem::replace(&mut self.arguments, arguments.to_vec());
        let flow = self.execute(body);
        self.arguments = outer;
        Ok(match flow? {
            Flow::Exit => Flow::Exit,
            _ => Flow::Next,
        })
    }

    /// Expands words into arguments.
    fn expand(&self, words: &[Word]) -> core::result::Result<Vec<String>, Stop> {
        let mut out = Expansion::default();
        for word in words {
            for part in word {
                match part {
                    Part::Text { text, quoted } => out.text(text, *quoted)?,
                    Part::Variable { name, quoted: true } if name == "@" => {
                        for (index, argument) in self.arguments.iter().enumerate() {
                            if index > 0 {
                                out.finish();
                            }
                            out.text(argument, true)?;
                        }
                    }
                    Part::Variable { name, quoted } => {
                        let value = self.value(name);
                        if *quoted {
                            out.text(&value, true)?;
                        } else {
                            out.split(&value)?;
                        }
                    }
                }
            }
            out.finish();
        }
        Ok(out.arguments)
    }

    fn value(&self, name: &str) -> String {
        let place = name.parse::<usize>().ok();
        match (name, place) {
            ("?", _) => String::from(if self.ok { "0" } else { "1" }),
            ("#", _) => self.arguments.len().to_string(),
            ("@" | "*", _) => self.arguments.join(" "),
            (_, Some(place)) => {
                let argument = place.checked_sub(1).and_then(|at| self.arguments.get(at));
                argument.cloned().unwrap_or_default()
            }
            _ => self.variable(name).to_string(),
        }
    }
}

/// Arguments in the making.
#[derive(Default)]
struct Expansion {
    arguments: Vec<String>,
    current: Option<String>,
    size: usize,
}

impl Expansion {
    fn text(&mut self, text: &str, quoted: bool) -> core::result::Result<(), Stop> {
        self.size = self.size.saturating_add(text.len()).saturating_add(1);
        if self.size > MAX_ARGUMENTS {
            return Err(Stop::Endless("a command has more than 64 KiB of arguments"));
        }
        if quoted || !text.is_empty() {
            self.current.get_or_insert_default().push_str(text);
        }
        Ok(())
    }

    /// An unquoted value: white space in it separates arguments.
    fn split(&mut self, value: &str) -> core::result::Result<(), Stop> {
        let mut pieces = value.split([' ', '\t', '\n']);
        self.text(pieces.next().unwrap_or_default(), false)?;
        for piece in pieces {
            self.finish();
            self.text(piece, false)?;
        }
        Ok(())
    }

    fn finish(&mut self) {
        self.arguments.extend(self.current.take());
    }
}
