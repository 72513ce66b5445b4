//! Copying by words.
//!
//! For an assignment between two references the compiler calls `memmove`, which in BPF is a loop
//! over bytes: five instructions for each.

/// Copies `from` over `to`, four or eight bytes at a time.
#[inline(always)]
pub fn copy<T: Copy>(from: &T, to: &mut T) {
    const {
        assert!(align_of::<T>() >= 4 && size_of::<T>().is_multiple_of(4), "made of whole words");
    }
    if const { align_of::<T>() >= 8 && size_of::<T>().is_multiple_of(8) } {
        by::<T, u64>(from, to);
    } else {
        by::<T, u32>(from, to);
    }
}

/// Makes `to` of long words, eight bytes at a time.
#[inline(always)]
pub fn set<T: Copy, const N: usize>(to: &mut T, words: [u64; N]) {
    const { assert!(align_of::<T>() >= 8 && size_of::<T>() == N * 8, "made of long words") };
    let to = core::ptr::from_mut(to).cast::<u64>();
    for (i, word) in words.into_iter().enumerate() {
        // SAFETY: within `to`, as checked; the caller's type is made of integers.
        unsafe { to.add(i).write_volatile(word) };
    }
}

#[inline(always)]
fn by<T, Word: Copy>(from: &T, to: &mut T) {
    let from = core::ptr::from_ref(from).cast::<Word>();
    let to = core::ptr::from_mut(to).cast::<Word>();
    let mut i = 0;
    while i < size_of::<T>() / size_of::<Word>() {
        // SAFETY: within both; `copy` has checked that words fit their size and alignment.
        // Volatile, or the compiler would make a call of it again.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::copy;

    #[test]
    fn copies_are_whole() {
        let (words, mut copied) = ([1u32, 2, 3], [0u32; 3]);
        copy(&words, &mut copied);
        assert_eq!(copied, words);
        let (words, mut copied) = ([u64::MAX, 7], [0u64; 2]);
        copy(&words, &mut copied);
        assert_eq!(copied, words);
    }
}
