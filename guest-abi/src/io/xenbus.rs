// SPDX-License-Identifier: MIT OR Apache-2.0
//! The states of a device's two ends (`io/xenbus.h`), decimal numbers in the store.

numbers! {
    /// State of one end (`XenbusState*`).
    pub enum State: u32 {
        /// None; what a missing or unreadable node means.
        Unknown = 0, "Unknown";
        /// Starting.
        Initialising = 1, "Initialising";
        /// The back end waits for the front end's details.
        InitWait = 2, "InitWait";
        /// The front end wrote its details.
        Initialised = 3, "Initialised";
        /// Ready.
        Connected = 4, "Connected";
        /// Going away.
        Closing = 5, "Closing";
        /// Gone.
        Closed = 6, "Closed";
        /// Being changed.
        Reconfiguring = 7, "Reconfiguring";
        /// Changed.
        Reconfigured = 8, "Reconfigured";
    }
}
