// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two shapes that the ABI is made of: structures and numbered lists.

/// Declares structures of the ABI.
///
/// Before each stands `["C name", size in bytes, "header"]`: the size is asserted at compile time.
/// A field whose C path differs says so with `= "path"`; `= "-"` is padding that C leaves unnamed.
/// Derives what makes a structure readable from bytes, and describes it for the layout test.
macro_rules! abi {
    ($(
        $(#[$meta:meta])*
        [$c:literal, $size:literal, $header:literal]
        pub struct $name:ident {
            $( $(#[$fmeta:meta])* pub $field:ident : $ty:ty $(= $path:literal)? ),* $(,)?
        }
    )*) => {$(
        $(#[$meta])*
        #[doc = ""]
        #[doc = concat!("`", $c, "` of `", $header, "`, ", $size, " bytes.")]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $ty ),* }

        const _: () = assert!(
            core::mem::size_of::<$name>() == $size,
            concat!("size of ", $c, " differs from ", $header),
        );

        /// All bytes zero.
        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }

        impl crate::layout::Abi for $name {
            const LAYOUT: crate::layout::Layout = crate::layout::Layout {
                rust_name: stringify!($name),
                c_name: $c,
                header: $header,
                size: core::mem::size_of::<$name>(),
                fields: &[$( crate::layout::Field {
                    path: abi!(@path $field $($path)?),
                    offset: core::mem::offset_of!($name, $field),
                    size: core::mem::size_of::<$ty>(),
                } ),*],
            };
        }
    )*};
    (@path $field:ident) => { stringify!($field) };
    (@path $field:ident $path:literal) => { $path };
}

/// Declares a list of numbers of the ABI as an enum that converts both ways and knows its names.
macro_rules! numbers {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident: $repr:ident {
            $( $(#[$vmeta:meta])* $variant:ident = $n:literal, $text:literal; )*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $( $(#[$vmeta])* $variant = $n ),* }

        impl $name {
            /// Every value, in the order of the header.
            pub const ALL: &'static [Self] = &[$( Self::$variant ),*];

            /// The number of the ABI.
            #[must_use]
            pub const fn number(self) -> $repr {
                self as $repr
            }

            /// From the number of the ABI; `None` when it is not in the list.
            #[must_use]
            pub const fn from_number(n: $repr) -> Option<Self> {
                match n {
                    $( $n => Some(Self::$variant), )*
                    _ => None,
                }
            }

            /// The header's name for it, without its common prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $text ),* }
            }
        }
    )*};
}
