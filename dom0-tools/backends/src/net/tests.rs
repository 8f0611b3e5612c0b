// SPDX-License-Identifier: MIT OR Apache-2.0
mod device;
mod frame;
mod join;
mod offload;
mod queue;
mod rig;
