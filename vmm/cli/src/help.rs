//! Help texts of flags with sub-keys.

/// Columns behind clap's indentation on a terminal of 80.
const HELP_WIDTH: usize = 70;

/// Returns the help of a flag with sub-keys, one paragraph per key. Wrapped here, because clap
/// would not indent continuation lines below the text.
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
