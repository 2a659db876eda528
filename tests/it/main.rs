//! The list of what we promise.

mod support; // what the tests share
mod webhook; // the webhook sink against receivers that misbehave
