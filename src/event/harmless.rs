//! Which characters of foreign text may be stored in answers and shown on a terminal: the one list. Pure.

/// Whether a character neither controls a terminal nor hides, reorders or breaks the text around it. Harmful
/// are control characters, what Unicode says to ignore where it is not supported (zero-width letters,
/// fillers, variation selectors, tags), marks of direction, separators of lines and annotations.
pub(crate) fn is_harmless(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{13430}'..='\u{1345f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A text on one line in which every other character is written like `\u{1b}` or `\n`.
pub(crate) fn escaped(text: &str) -> String {
    escaped_unless(text, is_harmless)
}

/// The same in a line for a terminal that has its own line breaks and colours; a stranger's were written out
/// before.
pub(crate) fn escaped_line(line: &str) -> String {
    escaped_unless(line, |character| is_harmless(character) || "\n\u{1b}".contains(character))
}

fn escaped_unless(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut written = String::with_capacity(text.len());
    for character in text.chars() {
        if is_kept(character) {
            written.push(character);
        } else {
            written.extend(character.escape_default());
        }
    }
    written
}

/// The same in JSON that was written already: the characters stand in its strings, where `\u001b` means the
/// same. Line breaks between values stay.
pub(crate) fn escaped_json(json: &str) -> String {
    let mut written = String::with_capacity(json.len());
    for character in json.chars() {
        if is_harmless(character) || character == '\n' {
            written.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                written.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_a_terminal_or_hides_in_a_text_is_written_out() {
        assert_eq!(escaped("a\u{1b}[31m\nbé — 日本 👍"), "a\\u{1b}[31m\\nbé — 日本 👍");
        for hidden in
            "\u{7f}\u{9b}\u{ad}\u{200b}\u{200d}\u{2028}\u{202e}\u{2066}\u{3164}\u{feff}\u{e0041}".chars()
        {
            assert!(!is_harmless(hidden), "{hidden:?}");
        }
    }

    #[test]
    fn json_means_the_same_when_it_is_escaped() {
        let text = "a\u{9b}31m\u{202e}\u{2028}\u{200b}\u{e0041}\u{7f} é\"\\";
        let written = escaped_json(&serde_json::to_string(&[text]).unwrap());
        assert!(written.chars().all(is_harmless), "{written}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&written).unwrap(), [text]);
    }
}
