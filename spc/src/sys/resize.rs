//! What makes a mounted file system as large as its device: one ioctl of each, as resize2fs(8) and xfs_growfs(8) use it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `EXT4_IOC_RESIZE_FS`.
const EXT4_RESIZE: libc::Ioctl = 0x4008_6610_u32 as libc::Ioctl;

/// `XFS_IOC_FSGEOMETRY_V1`.
const XFS_GEOMETRY: libc::Ioctl = 0x8070_5864_u32 as libc::Ioctl;

/// `XFS_IOC_FSGROWFSDATA`.
const XFS_GROW: libc::Ioctl = 0x4010_586e_u32 as libc::Ioctl;

/// `struct xfs_fsop_geom_v1`.
#[repr(C)]
#[derive(Default)]
struct Geometry {
    block_size: u32,
    realtime_extent: u32,
    group_blocks: u32,
    groups: u32,
    log_blocks: u32,
    sector_size: u32,
    inode_size: u32,
    inode_percent: u32,
    data_blocks: u64,
    rest: [u64; 9],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct Grow {
    blocks: u64,
    inode_percent: u32,
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the ext4 that a directory is on this many blocks large; Linux 3.3.
///
/// # Errors
/// The errno of the ioctl: EPERM without CAP_SYS_RESOURCE, EINVAL if it is larger already.
pub fn ext4(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one number of 64 bits, which lives across the call.
    done(unsafe { libc::ioctl(fd, EXT4_RESIZE, &raw const blocks) })
}

fn geometry(directory: impl AsFd) -> io::Result<Geometry> {
    let fd = directory.as_fd().as_raw_fd();
    let mut geometry = Geometry::default();
    // SAFETY: the kernel writes one structure that is laid out as it has it, and lives across the call.
    done(unsafe { libc::ioctl(fd, XFS_GEOMETRY, &raw mut geometry) })?;
    Ok(geometry)
}

/// How many blocks the XFS that a directory is on has, and of how many bytes.
///
/// # Errors
/// The errno of the ioctl.
pub fn xfs_blocks(directory: impl AsFd) -> io::Result<(u64, u32)> {
    let geometry = geometry(directory)?;
    Ok((geometry.data_blocks, geometry.block_size))
}

/// Makes the XFS that a directory is on as large as this many bytes allow.
///
/// # Errors
/// The errno of the ioctl: EPERM without CAP_SYS_ADMIN, EINVAL if it is larger already.
pub fn xfs(directory: impl AsFd, bytes: u64) -> io::Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    let geometry = geometry(&directory)?;
    let grow = Grow {
        blocks: bytes / u64::from(geometry.block_size.max(1)),
        inode_percent: geometry.inode_percent,
    };
    // SAFETY: the kernel reads one structure that is laid out as it has it, and lives across the call.
    done(unsafe { libc::ioctl(fd, XFS_GROW, &raw const grow) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_large_as_the_numbers_of_the_calls_say() {
        let size = |number: libc::Ioctl| (number >> 16 & 0x3fff) as usize;
        assert_eq!(size(XFS_GEOMETRY), size_of::<Geometry>());
        assert_eq!(size(XFS_GROW), size_of::<Grow>());
        assert_eq!(size(EXT4_RESIZE), size_of::<u64>());
    }

    #[test]
    fn a_file_system_of_another_kind_refuses() {
        let proc = std::fs::File::open("/proc").unwrap();
        for refused in [ext4(&proc, 1), xfs(&proc, 1)] {
            let errno = refused.unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::ENOTTY));
        }
        assert!(xfs_blocks(&proc).is_err());
    }
}
