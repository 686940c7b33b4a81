//! Thumbnails: made at the first request in one of a few sizes, kept as files beside the blobs, never larger than the
//! original (client-server API, "Thumbnails").
//!
//! A picture from outside is decoded with bounded width, height and memory, outside the async threads, two at a time;
//! a caller waits a bounded time. What the decoders do not know gets no thumbnail.

use std::{
    io::{BufReader, Cursor},
    sync::Arc,
    time::Duration,
};

use image::{
    DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder,
    metadata::Orientation,
};

use super::Blobs;
use crate::{
    error::{Code, Error, Result, invalid, refuse},
    store::media::Medium,
};

/// How long a caller waits for a thumbnail.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The quality of JPEG thumbnails.
const JPEG_QUALITY: u8 = 80;
/// The longest side of a picture that is looked at: that of a JPEG.
const SIDE_MAX: u32 = 65_535;
/// Bytes of memory per pixel while decoding: four channels of eight bits.
const BYTES_PER_PIXEL: u64 = 4;
/// Pictures that browsers show and our decoders do not know are their own thumbnail up to this size.
const ORIGINAL_BYTES_MAX: i64 = 256 << 10;

/// How a thumbnail fits its box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Fills it; what is beyond is cut off.
    Crop,
    /// Stays within it.
    Scale,
}

/// A size in which thumbnails are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// How it fits.
    pub method: Method,
}

const fn size(width: u32, height: u32, method: Method) -> Size {
    Size { width, height, method }
}

/// The sizes that the specification recommends, from the smallest.
pub const SIZES: [Size; 5] = [
    size(32, 32, Method::Crop),
    size(96, 96, Method::Crop),
    size(320, 240, Method::Scale),
    size(640, 480, Method::Scale),
    size(800, 600, Method::Scale),
];

/// The extensions of thumbnails' files.
pub(super) const EXTENSIONS: [&str; 2] = ["jpg", "png"];

/// What to send as a thumbnail.
#[derive(Debug)]
pub enum Thumbnail {
    /// A file.
    Made {
        /// The open file.
        file: tokio::fs::File,
        /// Its content type.
        content_type: &'static str,
        /// The size it was made in.
        size: Size,
    },
    /// The original, which is no larger.
    Original,
}

/// The size for a request: the next larger one of the method, else the next larger one, else the largest.
pub fn choose(width: u32, height: u32, method: Method) -> Size {
    let fits = |size: &Size| size.width >= width && size.height >= height;
    SIZES
        .into_iter()
        .find(|size| size.method == method && fits(size))
        .or_else(|| SIZES.into_iter().find(fits))
        .unwrap_or(SIZES[SIZES.len() - 1])
}

/// The thumbnail of a medium, made now if there is none yet.
pub async fn thumbnail(blobs: &Blobs, medium: &Medium, size: Size, pixels_max: u64) -> Result<Thumbnail> {
    let Some(format) = format(&medium.content_type) else {
        return if super::sniff::essence(&medium.content_type) == "image/avif"
            && medium.bytes <= ORIGINAL_BYTES_MAX
        {
            Ok(Thumbnail::Original)
        } else {
            Err(invalid("There is no thumbnail of a file of this kind."))
        };
    };
    if let Some(made) = cached(blobs, medium, size).await? {
        return Ok(made);
    }
    let busy = || {
        refuse(
            Code::LimitExceeded { retry_after_ms: 5_000 },
            "The server is busy with other pictures: please try again.",
        )
    };
    tokio::time::timeout(WAIT_MAX, make(blobs, medium, size, format, pixels_max)).await.map_err(|_| busy())?
}

fn format(content_type: &str) -> Option<ImageFormat> {
    Some(match super::sniff::essence(content_type) {
        "image/png" => ImageFormat::Png,
        "image/jpeg" => ImageFormat::Jpeg,
        "image/gif" => ImageFormat::Gif,
        "image/webp" => ImageFormat::WebP,
        _ => return None,
    })
}

async fn cached(blobs: &Blobs, medium: &Medium, size: Size) -> Result<Option<Thumbnail>> {
    for (extension, content_type) in EXTENSIONS.into_iter().zip(["image/jpeg", "image/png"]) {
        match tokio::fs::File::open(blobs.thumbnail_path(&medium.sha256, size, extension)?).await {
            Ok(file) => return Ok(Some(Thumbnail::Made { file, content_type, size })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

async fn make(
    blobs: &Blobs,
    medium: &Medium,
    size: Size,
    format: ImageFormat,
    pixels_max: u64,
) -> Result<Thumbnail> {
    let permit = Arc::clone(&blobs.thumbnails)
        .acquire_owned()
        .await
        .map_err(|_| Error::internal("the thumbnails' semaphore is closed"))?;
    // Somebody else may have made it meanwhile.
    if let Some(made) = cached(blobs, medium, size).await? {
        return Ok(made);
    }
    let source = blobs.open(&medium.sha256).await?.into_std().await;
    let part = blobs.part()?;
    let paths = [
        blobs.thumbnail_path(&medium.sha256, size, EXTENSIONS[0])?,
        blobs.thumbnail_path(&medium.sha256, size, EXTENSIONS[1])?,
    ];
    let work = tokio::task::spawn_blocking(move || {
        // The permit ends with the work, not with a caller who has stopped waiting.
        let _permit = permit;
        let Some((picture, alpha)) = reduce(source, format, size, pixels_max)? else { return Ok(false) };
        part.write(&picture, &paths[usize::from(alpha)])?;
        Ok::<bool, Error>(true)
    });
    // A decoder that panics on a crafted picture costs this answer and nothing else.
    let made = work.await.map_err(|_| not_a_picture())??;
    if !made {
        return Ok(Thumbnail::Original);
    }
    cached(blobs, medium, size).await?.ok_or_else(|| Error::internal("a thumbnail is gone"))
}

/// The reduced picture and whether it is a PNG (for its transparency); `None` where the original is small enough.
fn reduce(
    source: std::fs::File,
    format: ImageFormat,
    size: Size,
    pixels_max: u64,
) -> Result<Option<(Vec<u8>, bool)>> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(pixels_max.saturating_mul(BYTES_PER_PIXEL));
    let mut reader = ImageReader::with_format(BufReader::new(source), format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(not_a_picture());
    }
    if u64::from(width) * u64::from(height) > pixels_max {
        return Err(too_many_pixels());
    }
    limits.reserve(decoder.total_bytes()).map_err(undecodable)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let lies = matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    );
    let turned = |(a, b): (u32, u32)| if lies { (b, a) } else { (a, b) };
    let (region, result) = plan(turned((width, height)), size);
    let (region, result) = (turned(region), turned(result));
    // GIF and WebP may move, and a thumbnail that was not asked to must not: they are made anew in any case.
    if result == (width, height) && matches!(format, ImageFormat::Jpeg | ImageFormat::Png) {
        return Ok(None);
    }
    let mut picture = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
    if region != (width, height) {
        let (x, y) = ((width - region.0) / 2, (height - region.1) / 2);
        picture = picture.crop_imm(x, y, region.0, region.1);
    }
    if result != region {
        picture = picture.thumbnail_exact(result.0, result.1);
    }
    picture.apply_orientation(orientation);
    let mut bytes = Vec::new();
    let alpha = picture.color().has_alpha();
    let written = if alpha {
        DynamicImage::ImageRgba8(picture.into_rgba8())
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
    } else {
        JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(&picture.into_rgb8())
    };
    written.map_err(|error| Error::internal(error.to_string()))?;
    Ok(Some((bytes, alpha)))
}

/// The middle part of the original that is shown, and the size in which: never larger than that part.
fn plan((width, height): (u32, u32), size: Size) -> ((u32, u32), (u32, u32)) {
    let (w, h) = (u64::from(width), u64::from(height));
    let (box_w, box_h) = (u64::from(size.width), u64::from(size.height));
    let wide = w * box_h > h * box_w;
    // The results are at most `width` and `height`.
    let pixels = |n: u64| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
    match size.method {
        Method::Crop => {
            let region =
                if wide { (pixels(h * box_w / box_h), height) } else { (width, pixels(w * box_h / box_w)) };
            let smaller = region.0 <= size.width || region.1 <= size.height;
            (region, if smaller { region } else { (size.width, size.height) })
        }
        Method::Scale if width <= size.width && height <= size.height => ((width, height), (width, height)),
        Method::Scale if wide => ((width, height), (size.width, pixels(h * box_w / w))),
        Method::Scale => ((width, height), (pixels(w * box_h / h), size.height)),
    }
}

fn undecodable(error: ImageError) -> Error {
    match error {
        ImageError::Limits(_) => too_many_pixels(),
        _ => not_a_picture(),
    }
}

fn not_a_picture() -> Error {
    invalid("The picture is damaged or of an unknown kind: there is no thumbnail of it.")
}

fn too_many_pixels() -> Error {
    refuse(Code::TooLarge, "The picture is too large to make a thumbnail of it.")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::media::UploadLimits;

    #[test]
    fn the_next_larger_size_is_chosen() {
        for ((width, height, method), expected) in [
            ((1, 1, Method::Crop), SIZES[0]),
            ((32, 32, Method::Crop), SIZES[0]),
            ((33, 10, Method::Crop), SIZES[1]),
            ((128, 128, Method::Crop), SIZES[2]),
            ((1, 1, Method::Scale), SIZES[2]),
            ((320, 241, Method::Scale), SIZES[3]),
            ((641, 1, Method::Scale), SIZES[4]),
            ((4_000, 4_000, Method::Scale), SIZES[4]),
            ((u32::MAX, u32::MAX, Method::Crop), SIZES[4]),
        ] {
            assert_eq!(choose(width, height, method), expected);
        }
    }

    #[test]
    fn thumbnails_keep_the_ratio_and_never_grow() {
        for (original, size, expected) in [
            ((1_000, 500), SIZES[1], ((500, 500), (96, 96))),
            ((500, 1_000), SIZES[1], ((500, 500), (96, 96))),
            ((40, 20), SIZES[1], ((20, 20), (20, 20))),
            ((3_200, 2_400), SIZES[2], ((3_200, 2_400), (320, 240))),
            ((2_400, 3_200), SIZES[2], ((2_400, 3_200), (180, 240))),
            ((10_000, 1), SIZES[2], ((10_000, 1), (320, 1))),
            ((320, 240), SIZES[2], ((320, 240), (320, 240))),
            ((10, 10), SIZES[4], ((10, 10), (10, 10))),
        ] {
            assert_eq!(plan(original, size), expected, "{original:?} in {size:?}");
        }
    }

    struct Folder(std::path::PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn blobs() -> (Folder, Blobs) {
        let path = std::env::temp_dir().join(format!("heya-thumbs-{}", crate::clock::random_token(12)));
        (Folder(path.clone()), Blobs::new(path))
    }

    async fn upload(blobs: &Blobs, bytes: Vec<u8>, content_type: &str) -> Medium {
        let limits = UploadLimits {
            bytes_max: 1 << 20,
            idle: Duration::from_secs(10),
            total: Duration::from_secs(10),
        };
        let size = i64::try_from(bytes.len()).unwrap();
        let (stored, ()) = blobs.put_stream(Body::from(bytes), limits, |_| Ok(())).await.unwrap();
        Medium {
            media_id: "id".to_owned(),
            user_id: "@p1:example.jp".to_owned(),
            sha256: stored.sha256.clone(),
            content_type: content_type.to_owned(),
            file_name: None,
            bytes: size,
        }
    }

    fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    async fn dimensions(thumbnail: Thumbnail) -> (&'static str, u32, u32) {
        let Thumbnail::Made { mut file, content_type, .. } = thumbnail else { panic!("the original") };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).await.unwrap();
        let picture = image::load_from_memory(&bytes).unwrap();
        (content_type, picture.width(), picture.height())
    }

    #[tokio::test]
    async fn pictures_are_reduced_once() {
        let (_folder, blobs) = blobs();
        let opaque = encoded(&DynamicImage::new_rgb8(1_000, 500), ImageFormat::Png);
        let medium = upload(&blobs, opaque, "image/png").await;
        for _ in 0..2 {
            let made = thumbnail(&blobs, &medium, SIZES[2], 1_000_000).await.unwrap();
            assert_eq!(dimensions(made).await, ("image/jpeg", 320, 160));
        }
        let made = thumbnail(&blobs, &medium, SIZES[0], 1_000_000).await.unwrap();
        assert_eq!(dimensions(made).await, ("image/jpeg", 32, 32));

        let clear = encoded(&DynamicImage::new_rgba8(500, 1_000), ImageFormat::Png);
        let medium = upload(&blobs, clear, "image/png").await;
        let made = thumbnail(&blobs, &medium, SIZES[2], 1_000_000).await.unwrap();
        assert_eq!(dimensions(made).await, ("image/png", 120, 240));

        let alone = blobs.alone().await;
        blobs.remove(&alone, &medium.sha256).await.unwrap();
        assert!(cached(&blobs, &medium, SIZES[2]).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn small_large_and_broken_pictures() {
        let (_folder, blobs) = blobs();
        let picture = encoded(&DynamicImage::new_rgb8(100, 100), ImageFormat::Png);
        let medium = upload(&blobs, picture.clone(), "image/png").await;
        let small = thumbnail(&blobs, &medium, SIZES[4], 1_000_000).await.unwrap();
        assert!(matches!(small, Thumbnail::Original));
        let code = |result: Result<Thumbnail>| result.err().and_then(|error| error.code());
        let pixels = thumbnail(&blobs, &medium, SIZES[0], 9_999).await;
        assert_eq!(code(pixels), Some(Code::TooLarge));

        let broken = upload(&blobs, picture[..40].to_vec(), "image/png").await;
        assert_eq!(code(thumbnail(&blobs, &broken, SIZES[0], 1_000_000).await), Some(Code::InvalidParam));
        let text = upload(&blobs, b"hello".to_vec(), "text/plain").await;
        assert_eq!(code(thumbnail(&blobs, &text, SIZES[0], 1_000_000).await), Some(Code::InvalidParam));
    }
}
