//! `spc umount`: escalation, holders, and mounts that do not respond.

mod umount;
mod unresponsive;
