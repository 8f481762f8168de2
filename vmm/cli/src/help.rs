//! Help texts of flags that have keys of their own.

/// Columns that help has behind clap's indentation on a terminal of 80.
const HELP_WIDTH: usize = 70;

/// Help of a flag with keys of its own: each in lines of its own, broken here, for clap would begin what it breaks
/// below the key.
pub(crate) fn keys(what: &str, keys: &[(&str, &str)]) -> String {
    let width = keys.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let margin = width + 3;
    let mut help = what.to_owned();
    for (key, text) in keys {
        help += &format!("\n  {key:<width$} ");
        let mut column = margin;
        for word in text.split(' ') {
            let length = word.chars().count() + 1;
            if column + length > HELP_WIDTH {
                help += &format!("\n{:margin$}", "");
                column = margin;
            }
            help.push(' ');
            help += word;
            column += length;
        }
    }
    help
}
