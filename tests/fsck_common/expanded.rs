//! A dump's XML as what it says: shared parts put where they are referred to, runs joined, their names gone.

use std::collections::HashMap;

/// One volume: its attributes, and its runs as (begin, data begin, length, time).
pub type Volume = (Vec<(String, String)>, Vec<[u64; 4]>);

/// The superblock's attributes and the volumes. Flags are left out: what is built anew needs no check.
#[derive(PartialEq, Eq, Debug)]
pub struct Expanded {
    pub pool: Vec<(String, String)>,
    pub volumes: Vec<Volume>,
}

/// Takes a dump apart, a line at a time, as dumps are written.
pub fn expanded(xml: &str) -> Expanded {
    let mut parts: HashMap<String, Vec<[u64; 4]>> = HashMap::new();
    let mut found = Expanded { pool: Vec::new(), volumes: Vec::new() };
    let mut part: Option<String> = None;
    for line in xml.lines().map(str::trim) {
        let attributes = attributes_of(line);
        let text = |name: &str| {
            attributes
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
                .expect("an attribute")
        };
        let number = |name: &str| text(name).parse::<u64>().expect("a number");
        let runs = if line.starts_with("<superblock") {
            found.pool = attributes.into_iter().filter(|(key, _)| key != "flags").collect();
            continue;
        } else if line.starts_with("<def") {
            part = Some(text("name"));
            parts.insert(text("name"), Vec::new());
            continue;
        } else if line.starts_with("<device") {
            found.volumes.push((attributes, Vec::new()));
            continue;
        } else if line.starts_with("</def") {
            part = None;
            continue;
        } else if line.starts_with("<ref") {
            parts[&text("name")].clone()
        } else if line.starts_with("<single") {
            vec![[number("origin_block"), number("data_block"), 1, number("time")]]
        } else if line.starts_with("<range") {
            vec![[number("origin_begin"), number("data_begin"), number("length"), number("time")]]
        } else {
            continue;
        };
        let into = match &part {
            Some(name) => parts.get_mut(name).expect("it was begun"),
            None => &mut found.volumes.last_mut().expect("a volume was begun").1,
        };
        runs.into_iter().for_each(|run| join(into, run));
    }
    found
}

fn join(runs: &mut Vec<[u64; 4]>, run: [u64; 4]) {
    match runs.last_mut() {
        Some(last) if last[0] + last[2] == run[0] && last[1] + last[2] == run[1] && last[3] == run[3] => {
            last[2] += run[2];
        }
        _ => runs.push(run),
    }
}

fn attributes_of(line: &str) -> Vec<(String, String)> {
    let mut pieces = line.split('"');
    let mut found = Vec::new();
    while let (Some(key), Some(value)) = (pieces.next(), pieces.next()) {
        let key = key.trim_end_matches('=').rsplit(' ').next().expect("a split has a last piece");
        found.push((key.to_owned(), value.to_owned()));
    }
    found
}
