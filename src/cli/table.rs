//! Tables: borderless for people, tabs for scripts (`-H`), the columns that were asked for (`-o`), exact bytes (`-p`).

use super::size;
use crate::error::{Error, ErrorKind, Result};
use comfy_table::{CellAlignment, Table, presets};

/// How to print; the same for every command that shows something.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct TableArgs {
    /// Columns to show, separated by commas
    #[arg(short = 'o', long = "columns", value_name = "COLUMNS", value_delimiter = ',')]
    pub(super) columns: Vec<String>,
    /// For scripts: no header, tabs between columns
    #[arg(short = 'H', long = "no-header")]
    pub(super) no_header: bool,
    /// Exact numbers of bytes
    #[arg(short = 'p', long = "exact")]
    pub(super) exact: bool,
}

impl TableArgs {
    /// Whether anything was asked for.
    pub(super) fn is_used(&self) -> bool {
        self.no_header || self.exact || !self.columns.is_empty()
    }
}

/// What stands in a cell.
pub(super) enum Cell {
    /// As it is; `-` stands for an empty one.
    Text(String),
    /// A count or number.
    Number(u64),
    /// A size.
    Bytes(u64),
}

impl Cell {
    /// Text, if there is some.
    pub(super) fn maybe(text: Option<impl ToString>) -> Cell {
        Cell::Text(text.map(|text| text.to_string()).unwrap_or_default())
    }

    /// A number, if it is known.
    pub(super) fn maybe_number(number: Option<impl Into<u64>>) -> Cell {
        number.map_or(Cell::Text(String::new()), |number| Cell::Number(number.into()))
    }

    /// A size, if it is known.
    pub(super) fn maybe_bytes(bytes: Option<u64>) -> Cell {
        bytes.map_or(Cell::Text(String::new()), Cell::Bytes)
    }

    pub(super) fn show(&self, exact: bool) -> String {
        match self {
            Cell::Text(text) if text.is_empty() => "-".to_owned(),
            Cell::Text(text) => text.clone(),
            Cell::Number(number) => number.to_string(),
            Cell::Bytes(bytes) if exact => bytes.to_string(),
            Cell::Bytes(bytes) => size::human(*bytes),
        }
    }

    fn alignment(&self) -> CellAlignment {
        match self {
            Cell::Text(_) => CellAlignment::Left,
            Cell::Number(_) | Cell::Bytes(_) => CellAlignment::Right,
        }
    }
}

/// A column: its name is what `-o` takes and, in capitals, its header.
pub(super) struct Column<T> {
    pub(super) name: &'static str,
    /// Shown unless the user chooses.
    pub(super) by_default: bool,
    pub(super) cell: fn(&T) -> Cell,
}

/// The columns that are to be shown. `Invalid` with all names for an unknown one.
pub(super) fn select<'a, T>(all: &'a [Column<T>], args: &TableArgs) -> Result<Vec<&'a Column<T>>> {
    if args.columns.is_empty() {
        return Ok(all.iter().filter(|column| column.by_default).collect());
    }
    let find = |name: &String| {
        all.iter().find(|column| column.name == name.trim()).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|column| column.name).collect();
            Error::new(ErrorKind::Invalid, format!("there is no column `{name}`"))
                .hint(format!("the columns are {}", names.join(",")))
        })
    };
    args.columns.iter().map(find).collect()
}

/// The whole table, with a newline at the end of each line.
pub(super) fn render<T>(columns: &[&Column<T>], rows: &[T], args: &TableArgs) -> String {
    let shown =
        |row: &T| columns.iter().map(|column| (column.cell)(row).show(args.exact)).collect::<Vec<_>>();
    if args.no_header {
        return rows.iter().map(|row| shown(row).join("\t") + "\n").collect();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| column.name.replace('_', " ").to_uppercase()));
    table.add_rows(rows.iter().map(shown));
    for (index, column) in columns.iter().enumerate() {
        let alignment = rows.first().map_or(CellAlignment::Left, |row| (column.cell)(row).alignment());
        let place = table.column_mut(index).expect("every column has a header");
        place.set_cell_alignment(alignment);
        place.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// One thing and its properties, one a line.
pub(super) fn render_properties<T>(columns: &[&Column<T>], thing: &T, args: &TableArgs) -> String {
    let width = columns.iter().map(|column| column.name.len()).max().unwrap_or(0);
    let line = |column: &&Column<T>| {
        format!("{:width$}  {}\n", column.name.replace('_', " "), (column.cell)(thing).show(args.exact))
    };
    columns.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column<(&str, u64)>; 3] = [
        Column { name: "name", by_default: true, cell: |row| Cell::Text(row.0.to_owned()) },
        Column { name: "size", by_default: true, cell: |row| Cell::Bytes(row.1) },
        Column { name: "count_of", by_default: false, cell: |row| Cell::Number(row.1) },
    ];
    const ROWS: [(&str, u64); 2] = [("long-name", 65_536), ("", 1000)];

    fn rendered(args: &TableArgs) -> String {
        render(&select(&COLUMNS, args).expect("known columns"), &ROWS, args)
    }

    #[test]
    fn for_people_and_for_scripts() {
        assert_eq!(rendered(&TableArgs::default()), "NAME       SIZE\nlong-name   64K\n-          1000\n");
        let args = TableArgs { no_header: true, exact: true, columns: vec!["size".into(), " name".into()] };
        assert_eq!(rendered(&args), "65536\tlong-name\n1000\t-\n");
        let args = TableArgs { columns: vec!["count_of".into()], ..TableArgs::default() };
        assert_eq!(rendered(&args), "COUNT OF\n   65536\n    1000\n");
    }

    #[test]
    fn an_empty_table_has_its_header() {
        let args = TableArgs::default();
        let columns = select(&COLUMNS, &args).expect("known columns");
        assert_eq!(render(&columns, &[], &args), "NAME  SIZE\n");
    }

    #[test]
    fn an_unknown_column_is_refused_with_all_names() {
        let args = TableArgs { columns: vec!["nmae".into()], ..TableArgs::default() };
        let error = select(&COLUMNS, &args).err().expect("unknown");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.next_step().is_some_and(|hint| hint.contains("name,size,count_of")));
    }

    #[test]
    fn properties_stand_one_a_line() {
        let columns: Vec<_> = COLUMNS.iter().collect();
        let text = render_properties(&columns, &("a", 1024), &TableArgs::default());
        assert_eq!(text, "name      a\nsize      1K\ncount of  1024\n");
    }
}
