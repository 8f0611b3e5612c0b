// SPDX-License-Identifier: MIT OR Apache-2.0
mod device;
mod frame;
mod queue;
mod rig;
