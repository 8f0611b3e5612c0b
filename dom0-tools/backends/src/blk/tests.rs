// SPDX-License-Identifier: MIT OR Apache-2.0
mod device;
mod disk;
mod hostile;
mod mappings;
mod queue;
mod rig;
