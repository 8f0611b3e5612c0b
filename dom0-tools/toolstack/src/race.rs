// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for the first of two things.

use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;

/// Which of two came first.
pub(crate) enum First<A, B> {
    /// The first one.
    A(A),
    /// The second one.
    B(B),
}

/// Waits until one of two is done, and drops the other.
pub(crate) async fn first<A, B>(
    a: impl Future<Output = A>,
    b: impl Future<Output = B>,
) -> First<A, B> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(out) = a.as_mut().poll(cx) {
            return Poll::Ready(First::A(out));
        }
        b.as_mut().poll(cx).map(First::B)
    })
    .await
}
