//! What happens to a key when one of its events becomes a dead letter.
