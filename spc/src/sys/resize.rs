//! Growth of mounted ext4 and XFS file systems by ioctl, as resize2fs(8) and xfs_growfs(8) do it.
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

/// Converts the result of an ioctl.
fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Resizes the ext4 file system of a directory to this number of blocks; Linux 3.3.
///
/// # Errors
/// Returns the errno of the ioctl: EPERM without CAP_SYS_RESOURCE, EINVAL if the file system is
/// larger already.
pub fn ext4(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one 64-bit number, which lives until the call returns.
    check(unsafe { libc::ioctl(fd, EXT4_RESIZE, &raw const blocks) })
}

/// Returns the geometry of the XFS file system of a directory.
fn geometry(directory: impl AsFd) -> io::Result<Geometry> {
    let fd = directory.as_fd().as_raw_fd();
    let mut geometry = Geometry::default();
    // SAFETY: the kernel writes one structure, which has its layout and lives until the call
    // returns.
    check(unsafe { libc::ioctl(fd, XFS_GEOMETRY, &raw mut geometry) })?;
    Ok(geometry)
}

/// Returns the size of the XFS file system of a directory: number of blocks, and bytes per block.
///
/// # Errors
/// Returns the errno of the ioctl.
pub fn xfs_blocks(directory: impl AsFd) -> io::Result<(u64, u32)> {
    let geometry = geometry(directory)?;
    Ok((geometry.data_blocks, geometry.block_size))
}

/// Grows the XFS file system of a directory to a size in bytes, rounded down to whole blocks.
///
/// # Errors
/// Returns the errno of the ioctl: EPERM without CAP_SYS_ADMIN, EINVAL if the file system is larger
/// already.
pub fn xfs(directory: impl AsFd, bytes: u64) -> io::Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    let geometry = geometry(&directory)?;
    let grow = Grow {
        blocks: bytes / u64::from(geometry.block_size.max(1)),
        inode_percent: geometry.inode_percent,
    };
    // SAFETY: the kernel reads one structure, which has its layout and lives until the call
    // returns.
    check(unsafe { libc::ioctl(fd, XFS_GROW, &raw const grow) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_size_in_their_ioctl_numbers() {
        let size = |number: libc::Ioctl| (number >> 16 & 0x3fff) as usize;
        assert_eq!(size(XFS_GEOMETRY), size_of::<Geometry>());
        assert_eq!(size(XFS_GROW), size_of::<Grow>());
        assert_eq!(size(EXT4_RESIZE), size_of::<u64>());
    }

    #[test]
    fn resize_of_another_file_system_fails_with_enotty() {
        let proc = std::fs::File::open("/proc").unwrap();
        for refused in [ext4(&proc, 1), xfs(&proc, 1)] {
            let errno = refused.unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::ENOTTY));
        }
        assert!(xfs_blocks(&proc).is_err());
    }
}
