//! Takes a source file apart far enough to see its imports, its `unsafe` and its test-only modules.
//!
//! Not a parser: a tokenizer that knows comments, strings, characters and lifetimes, and a walk over the tokens that
//! knows `mod` blocks, `#[cfg(test)]` and paths beginning with `crate::` or `super::`.

/// A path into another part of the crate.
#[derive(Debug, PartialEq, Eq)]
pub struct Import {
    /// The first module after the crate's root.
    pub room: String,
    /// Where it stands, from 1.
    pub line: usize,
}

/// What was seen in a file.
#[derive(Debug, Default)]
pub struct Source {
    /// Paths from the crate's root, outside code that only tests compile.
    pub imports: Vec<Import>,
    /// Lines with the word `unsafe`, tests included.
    pub unsafe_lines: Vec<usize>,
    /// Names in `#[cfg(test)] mod NAME;`.
    pub test_modules: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Looks at `text`, whose file is a module `depth` below the crate's root.
pub fn scan(text: &str, depth: usize) -> Source {
    Walk {
        tokens: tokens_of(text),
        at: 0,
        depth,
        blocks: Vec::new(),
        pending: None,
        source: Source::default(),
    }
    .run()
}

/// What an open brace belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Module,
    Tests,
    Other,
}

struct Walk<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
    depth: usize,
    blocks: Vec<Block>,
    /// What the next brace opens, if it is more than any block.
    pending: Option<Block>,
    source: Source,
}

impl<'a> Walk<'a> {
    fn peek(&self, ahead: usize) -> &'a str {
        self.tokens.get(self.at + ahead).map_or("", |token| token.text)
    }

    fn run(mut self) -> Source {
        let mut is_for_tests = false;
        while let Some(&Token { text, line }) = self.tokens.get(self.at) {
            match text {
                "#" => {
                    is_for_tests |= self.attribute();
                    continue;
                }
                "mod" if is_name(self.peek(1)) => {
                    let is_block = self.peek(2) == "{";
                    if is_for_tests && !is_block {
                        self.source.test_modules.push(self.peek(1).to_owned());
                    }
                    self.pending =
                        is_block.then_some(if is_for_tests { Block::Tests } else { Block::Module });
                }
                "{" => {
                    let block = if is_for_tests { Some(Block::Tests) } else { self.pending };
                    self.blocks.push(block.unwrap_or(Block::Other));
                    (self.pending, is_for_tests) = (None, false);
                }
                "}" => drop(self.blocks.pop()),
                ";" => is_for_tests = false,
                "unsafe" => self.source.unsafe_lines.push(line),
                "crate" if self.peek(1) == "::" => {
                    self.at += 2;
                    self.rooms_named_here(is_for_tests);
                    continue;
                }
                "super" => {
                    self.super_chain(is_for_tests);
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        self.source
    }

    /// Steps over `#[…]` or `#![…]`; whether it says that what follows is for tests only.
    fn attribute(&mut self) -> bool {
        self.at += if self.peek(1) == "!" { 2 } else { 1 };
        let begin = self.at;
        let mut open = 0_usize;
        loop {
            match self.peek(0) {
                "[" => open += 1,
                "]" => open = open.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
            if open == 0 || self.at >= self.tokens.len() {
                break;
            }
        }
        let inside = &self.tokens[begin..self.at.min(self.tokens.len())];
        let has = |word| inside.iter().any(|token| token.text == word);
        has("cfg") && has("test") && !has("not")
    }

    /// `super::super::…`: where it leaves the room, what follows is a room's name.
    fn super_chain(&mut self, is_for_tests: bool) {
        let mut steps = 0;
        while self.peek(0) == "super" && self.peek(1) == "::" {
            steps += 1;
            self.at += 2;
        }
        if steps == 0 {
            self.at += 1; // `pub(super)`
            return;
        }
        let modules = self.blocks.iter().filter(|block| **block != Block::Other).count();
        if steps >= self.depth + modules {
            self.rooms_named_here(is_for_tests);
        }
    }

    /// Notes the names that follow `crate::`: one, or those of a group.
    fn rooms_named_here(&mut self, is_for_tests: bool) {
        let is_test = is_for_tests || self.blocks.contains(&Block::Tests);
        let mut note = |token: Token<'_>| {
            if !is_test {
                self.source.imports.push(Import { room: token.text.to_owned(), line: token.line });
            }
        };
        let Some(&first) = self.tokens.get(self.at) else { return };
        if first.text != "{" {
            note(first);
            self.at += 1;
            return;
        }
        let (mut open, mut is_first_of_path) = (0_usize, true);
        while let Some(&token) = self.tokens.get(self.at) {
            self.at += 1;
            match token.text {
                "{" => open += 1,
                "}" => open -= 1,
                "," if open == 1 => is_first_of_path = true,
                _ if open == 1 && is_first_of_path => {
                    note(token);
                    is_first_of_path = false;
                }
                _ => {}
            }
            if open == 0 {
                return;
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names and punctuation, `::` as one token; comments, literals and lifetimes are left out.
fn tokens_of(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment_length(rest),
            '"' => string_length(rest),
            '\'' => quote_length(rest),
            'r' | 'b' | 'c' if raw_string_length(rest).is_some() => raw_string_length(rest).unwrap_or(1),
            _ if is_name(rest) || first.is_ascii_digit() => {
                rest.find(|other: char| !other.is_alphanumeric() && other != '_').unwrap_or(rest.len())
            }
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        if is_name(token) && raw_string_length(token).is_none() || token == "::" || is_punctuation(token) {
            tokens.push(Token { text: token, line });
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

fn is_punctuation(token: &str) -> bool {
    token.len() == 1 && token.starts_with(|one: char| one.is_ascii_punctuation() && one != '"' && one != '\'')
}

fn comment_length(text: &str) -> usize {
    let (mut open, mut at) = (0_usize, 0);
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        if here.starts_with(b"/*") {
            (open, at) = (open + 1, at + 2);
        } else if here.starts_with(b"*/") {
            (open, at) = (open - 1, at + 2);
            if open == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, one) in text.char_indices().skip(1) {
        match one {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Of `r"…"`, `br#"…"#` and their kin, if `text` begins with one.
fn raw_string_length(text: &str) -> Option<usize> {
    let start = text.find('r').filter(|at| *at <= 1)? + 1;
    let hashes = text[start..].bytes().take_while(|byte| *byte == b'#').count();
    let body = text[start + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(body.find(&end).map_or(text.len(), |at| start + hashes + 1 + at + end.len()))
}

/// Of a character literal, or of the apostrophe alone when it begins a lifetime.
fn quote_length(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => {
            text[2..].char_indices().skip(1).find(|(_, one)| *one == '\'').map_or(1, |(at, _)| at + 3)
        }
        Some(_) => characters.next().filter(|(_, one)| *one == '\'').map_or(1, |(at, _)| at + 1),
        None => 1,
    }
}
