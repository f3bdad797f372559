//! Error numbers of Linux (`include/uapi/asm-generic/errno*.h`), by name and value.
//!
//! Every failure that a system call can report to its caller is an [`Errno`]; broken assumptions of the simulator itself
//! are assertions instead. Only the numbers that the modelled code can return are listed.

use std::fmt;

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        /// An error number as a system call returns it.
        ///
        /// ```
        /// use sim_kernel::Errno;
        /// assert_eq!(Errno::EINVAL.number(), 22);
        /// assert_eq!(Errno::EHWPOISON.to_string(), "EHWPOISON");
        /// assert_eq!(Errno::from_name("EEXIST"), Some(Errno::EEXIST));
        /// ```
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Errno { $(#[doc = $text] $name = $value,)* }

        impl Errno {
            /// Every error number that the simulator knows, in ascending order of declaration.
            pub const ALL: &'static [Errno] = &[$(Errno::$name,)*];

            /// The name, as in `EINVAL`.
            pub const fn name(self) -> &'static str {
                match self { $(Errno::$name => stringify!($name),)* }
            }

            /// The sentence that `strerror` prints.
            pub const fn message(self) -> &'static str {
                match self { $(Errno::$name => $text,)* }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    EINTR = 4, "Interrupted system call";
    EIO = 5, "Input/output error";
    E2BIG = 7, "Argument list too long";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Resource temporarily unavailable";
    ENOMEM = 12, "Cannot allocate memory";
    EACCES = 13, "Permission denied";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "Device or resource busy";
    EEXIST = 17, "File exists";
    ENODEV = 19, "No such device";
    EINVAL = 22, "Invalid argument";
    ENFILE = 23, "Too many open files in system";
    EMFILE = 24, "Too many open files";
    ENOTTY = 25, "Inappropriate ioctl for device";
    EFBIG = 27, "File too large";
    ENOSPC = 28, "No space left on device";
    ENOSYS = 38, "Function not implemented";
    ESPIPE = 29, "Illegal seek";
    ERANGE = 34, "Numerical result out of range";
    EOVERFLOW = 75, "Value too large for defined data type";
    ENXIO = 6, "No such device or address";
    EOPNOTSUPP = 95, "Operation not supported";
    ETIMEDOUT = 110, "Connection timed out";
    EHWPOISON = 133, "Memory page has hardware error";
}

impl Errno {
    /// The positive number, as `errno` holds it.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The error number with this name, if it is one that the simulator knows.
    pub fn from_name(name: &str) -> Option<Errno> {
        Errno::ALL.iter().copied().find(|e| e.name() == name)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for Errno {}
