//! NVML's ways to return a value, a text and a list through the caller's pointers.

use std::{
    ffi::{c_char, c_uint},
    ptr,
};

use crate::code::{Code, INSUFFICIENT_SIZE, INVALID_ARGUMENT};

pub(super) fn put<T>(out: *mut T, value: T) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller of the ABI gives a valid pointer to a T.
    unsafe { out.write(value) };
    Ok(())
}

pub(super) fn put_text(out: *mut c_char, length: c_uint, text: &str) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller gives `length` bytes, and text and NUL fit.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), out, text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// NVML's way to return a list: `count` is the room, and then the number.
pub(super) fn put_list<T: Copy>(
    out: *mut T,
    count: *mut c_uint,
    items: &[T],
    query: bool,
) -> Result<(), Code> {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let number = c_uint::try_from(items.len()).unwrap_or(c_uint::MAX);
    // SAFETY: not null, valid by the ABI's contract.
    let room = unsafe { count.replace(number) };
    if out.is_null() {
        return if query || items.is_empty() {
            Ok(())
        } else {
            Err(INSUFFICIENT_SIZE)
        };
    }
    if (room as usize) < items.len() && !query {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller gives room for the items, as NVML demands.
    unsafe { ptr::copy_nonoverlapping(items.as_ptr(), out, items.len()) };
    Ok(())
}
