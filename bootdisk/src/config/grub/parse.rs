//! Commands out of tokens.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::iter::Peekable;
use core::slice::Iter;

use super::lex::{Part, Token, Word, tokens};

/// How deep commands may be nested.
const MAX_DEPTH: u32 = 64;

/// Commands that are run one after the other.
pub(super) type Block = Rc<[Command]>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Words, and a block in braces after them (`menuentry`).
    Simple(Vec<Word>, Option<Block>),
    Not(Box<Command>),
    /// Conditions with what is done, and what is done otherwise.
    If(Vec<(Block, Block)>, Block),
    For(String, Vec<Word>, Block),
    /// Runs as long as the condition yields the given truth.
    While(bool, Block, Block),
    Function(String, Block),
}

/// Why a script cannot be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

type Parsed<T> = Result<T, Malformed>;

/// Parses a script.
pub(super) fn parse(script: &str) -> Parsed<Block> {
    let tokens = tokens(script);
    let mut parser = Parser {
        tokens: tokens.iter().peekable(),
        depth: 0,
    };
    let block = parser.commands(&[], false)?;
    match parser.tokens.next() {
        None => Ok(block),
        Some(_) => Err(Malformed("a brace or a keyword closes what was not open")),
    }
}

struct Parser<'t> {
    tokens: Peekable<Iter<'t, Token>>,
    depth: u32,
}

/// The word as a keyword: without quotes and variables.
fn keyword(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [
            Part::Text {
                text,
                quoted: false,
            },
        ] => Some(text),
        _ => None,
    }
}

impl Parser<'_> {
    fn at_keyword(&mut self, keywords: &[&str]) -> bool {
        match self.tokens.peek() {
            Some(Token::Word(word)) => keyword(word).is_some_and(|word| keywords.contains(&word)),
            _ => false,
        }
    }

    fn expect(&mut self, word: &'static str) -> Parsed<()> {
        if self.at_keyword(&[word]) {
            self.tokens.next();
            return Ok(());
        }
        Err(Malformed(match word {
            "then" => "\"then\" is missing",
            "fi" => "\"fi\" is missing",
            "do" => "\"do\" is missing",
            "done" => "\"done\" is missing",
            _ => "\"in\" is missing",
        }))
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH {
            return Err(Malformed("commands are nested more than 64 deep"));
        }
        let result = inner(self);
        self.depth = self.depth.saturating_sub(1);
        result
    }

    /// Commands up to one of `ends`, or up to a closing brace if `braced`; neither is taken.
    fn commands(&mut self, ends: &[&str], braced: bool) -> Parsed<Block> {
        self.deeper(|parser| {
            let mut commands = Vec::new();
            loop {
                while matches!(parser.tokens.peek(), Some(Token::End)) {
                    parser.tokens.next();
                }
                if parser.at_keyword(ends) {
                    break;
                }
                match parser.tokens.peek() {
                    None => break,
                    Some(Token::Close) if braced || ends.is_empty() => break,
                    Some(Token::Close) => return Err(Malformed("an unexpected \"}\"")),
                    Some(_) => commands.push(parser.command()?),
                }
            }
            Ok(commands.into())
        })
    }

    fn command(&mut self) -> Parsed<Command> {
        let first = match self.tokens.peek() {
            Some(Token::Word(word)) => keyword(word).unwrap_or_default(),
            _ => "",
        };
        match first {
            "if" => self.condition(),
            "for" => self.iteration(),
            "while" => self.repetition(true),
            "until" => self.repetition(false),
            "function" => self.function(),
            "!" => {
                self.tokens.next();
                let inner = self.deeper(Self::command)?;
                Ok(Command::Not(Box::new(inner)))
            }
            _ => self.simple(),
        }
    }

    fn condition(&mut self) -> Parsed<Command> {
        let mut arms = Vec::new();
        let mut otherwise: Block = Rc::new([]);
        // Each round takes `if` or `elif`.
        loop {
            self.tokens.next();
            let condition = self.commands(&["then"], false)?;
            self.expect("then")?;
            let body = self.commands(&["elif", "else", "fi"], false)?;
            arms.push((condition, body));
            if self.at_keyword(&["elif"]) {
                continue;
            }
            if self.at_keyword(&["else"]) {
                self.tokens.next();
                otherwise = self.commands(&["fi"], false)?;
            }
            self.expect("fi")?;
            return Ok(Command::If(arms, otherwise));
        }
    }

    fn iteration(&mut self) -> Parsed<Command> {
        self.tokens.next();
        let name = self.name()?;
        self.expect("in")?;
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.peek() {
            words.push(word.clone());
            self.tokens.next();
        }
        Ok(Command::For(name, words, self.loop_body()?))
    }

    fn repetition(&mut self, truth: bool) -> Parsed<Command> {
        self.tokens.next();
        let condition = self.commands(&["do"], false)?;
        Ok(Command::While(truth, condition, self.loop_body()?))
    }

    fn loop_body(&mut self) -> Parsed<Block> {
        while matches!(self.tokens.peek(), Some(Token::End)) {
            self.tokens.next();
        }
        self.expect("do")?;
        let body = self.commands(&["done"], false)?;
        self.expect("done")?;
        Ok(body)
    }

    fn function(&mut self) -> Parsed<Command> {
        self.tokens.next();
        let name = self.name()?;
        while matches!(self.tokens.peek(), Some(Token::End)) {
            self.tokens.next();
        }
        match self.tokens.peek() {
            Some(Token::Open) => Ok(Command::Function(name, self.braces()?)),
            _ => Err(Malformed("a function has no body")),
        }
    }

    fn name(&mut self) -> Parsed<String> {
        match self.tokens.next() {
            Some(Token::Word(word)) => keyword(word).map(String::from),
            _ => None,
        }
        .ok_or(Malformed("a name is missing after \"for\" or \"function\""))
    }

    /// A block in braces, which has been seen to start.
    fn braces(&mut self) -> Parsed<Block> {
        self.tokens.next();
        let block = self.commands(&[], true)?;
        match self.tokens.next() {
            Some(Token::Close) => Ok(block),
            _ => Err(Malformed("a \"}\" is missing")),
        }
    }

    fn simple(&mut self) -> Parsed<Command> {
        let mut words = Vec::new();
        let mut block = None;
        loop {
            match self.tokens.peek() {
                Some(Token::Word(word)) => {
                    words.push(word.clone());
                    self.tokens.next();
                }
                Some(Token::Open) => block = Some(self.braces()?),
                None | Some(Token::End | Token::Close) => break,
            }
        }
        Ok(Command::Simple(words, block))
    }
}
