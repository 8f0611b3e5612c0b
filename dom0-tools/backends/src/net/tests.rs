// SPDX-License-Identifier: MIT OR Apache-2.0
mod device;
mod frame;
mod offload;
mod queue;
mod rig;
