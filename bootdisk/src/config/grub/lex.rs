//! Words, quotes and variables.

use alloc::string::String;
use alloc::vec::Vec;
use core::iter::Peekable;
use core::str::Chars;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// As it is. Quoted text makes an argument even if it is empty.
    Text { text: String, quoted: bool },
    /// A variable's value. Outside of quotes it is split at white space, and vanishes if empty.
    Variable { name: String, quoted: bool },
}

/// A word before expansion.
pub(super) type Word = Vec<Part>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// A line break, `;`, or something that ends a command like them.
    End,
    Open,
    Close,
}

/// Splits a script into tokens.
pub(super) fn tokens(script: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        rest: script.chars().peekable(),
        tokens: Vec::new(),
        word: Vec::new(),
    };
    while let Some(next) = lexer.rest.next() {
        lexer.take(next);
    }
    lexer.finish_word();
    lexer.tokens
}

struct Lexer<'s> {
    rest: Peekable<Chars<'s>>,
    tokens: Vec<Token>,
    word: Word,
}

impl Lexer<'_> {
    fn take(&mut self, next: char) {
        match next {
            '\n' | ';' | '&' | '|' => self.end(Token::End),
            '{' => self.end(Token::Open),
            '}' => self.end(Token::Close),
            next if next.is_ascii_whitespace() => self.finish_word(),
            '#' if self.word.is_empty() => {
                while self.rest.next_if(|next| *next != '\n').is_some() {}
            }
            '\\' => match self.rest.next() {
                // A line that goes on.
                Some('\n') | None => {}
                Some(literal) => self.push(literal, false),
            },
            '\'' => {
                self.text(true);
                while let Some(literal) = self.rest.next_if(|next| *next != '\'') {
                    self.push(literal, true);
                }
                self.rest.next();
            }
            '"' => self.double_quoted(),
            '$' => self.variable(false),
            literal => self.push(literal, false),
        }
    }

    fn double_quoted(&mut self) {
        self.text(true);
        while let Some(next) = self.rest.next() {
            match next {
                '"' => return,
                '$' => self.variable(true),
                '\\' => match self.rest.next() {
                    Some('\n') | None => {}
                    Some(escaped @ ('"' | '\\' | '$')) => self.push(escaped, true),
                    Some(other) => {
                        self.push('\\', true);
                        self.push(other, true);
                    }
                },
                literal => self.push(literal, true),
            }
        }
    }

    /// What follows a dollar sign.
    fn variable(&mut self, quoted: bool) {
        let mut name = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            while let Some(next) = self.rest.next_if(|next| *next != '}' && *next != '\n') {
                name.push(next);
            }
            self.rest.next_if_eq(&'}');
        } else if let Some(special) = self.rest.next_if(|next| "?@*#".contains(*next)) {
            name.push(special);
        } else {
            let digits = self.rest.peek().is_some_and(char::is_ascii_digit);
            let belongs = |next: &char| {
                if digits {
                    next.is_ascii_digit()
                } else {
                    next.is_ascii_alphanumeric() || *next == '_'
                }
            };
            while let Some(next) = self.rest.next_if(belongs) {
                name.push(next);
            }
        }
        if name.is_empty() {
            self.push('$', quoted);
        } else {
            self.word.push(Part::Variable { name, quoted });
        }
    }

    /// The piece of literal text that grows at the moment.
    fn text(&mut self, quoted: bool) -> Option<&mut String> {
        let fits =
            matches!(self.word.last(), Some(Part::Text { quoted: has, .. }) if *has == quoted);
        if !fits {
            let text = String::new();
            self.word.push(Part::Text { text, quoted });
        }
        match self.word.last_mut() {
            Some(Part::Text { text, .. }) => Some(text),
            _ => None,
        }
    }

    fn push(&mut self, literal: char, quoted: bool) {
        if let Some(text) = self.text(quoted) {
            text.push(literal);
        }
    }

    fn finish_word(&mut self) {
        if !self.word.is_empty() {
            let word = core::mem::take(&mut self.word);
            self.tokens.push(Token::Word(word));
        }
    }

    fn end(&mut self, token: Token) {
        self.finish_word();
        self.tokens.push(token);
    }
}
