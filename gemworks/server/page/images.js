// Pictures that are dropped, pasted or chosen: read, turned upright, made no larger than a model can use.

import { plainText } from "./links.js";
import { newId } from "./conversation.js";

// The tower sees 896 x 896 pixels of a picture, or of each of at most four crops of it: twice that side loses nothing.
const LONGEST_SIDE = 1792;
const JPEG_QUALITY = 0.9;
// As stored, a small PNG (a screenshot, a drawing) is kept bit for bit.
const MAX_KEPT_BYTES = 2_000_000;
export const MAX_IMAGES = 8;

/** Return {id, blob, name, width, height} of a file. Throws an Error whose message is for the reader. */
export async function readImage(file) {
  const name = plainText(file.name || "Pasted picture");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    const isPicture = file.type.startsWith("image/") || !file.type;
    throw new Error(isPicture ? `This browser cannot read ${name}. JPEG, PNG and WebP work.` : `${name} is not a picture.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale));
  const height = Math.max(1, Math.round(bitmap.height * scale));
  const isKept = file.type === "image/png" && scale === 1 && file.size <= MAX_KEPT_BYTES;
  // Drawing anew also drops what cameras write beside the picture: where it was taken, and with what.
  const blob = isKept ? file.slice(0, file.size, file.type) : await drawn(bitmap, width, height);
  bitmap.close();
  return { id: newId(), blob, name, width, height };
}

async function drawn(bitmap, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // JPEG has no transparency
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY));
  if (!blob) throw new Error("This picture is too large for the browser.");
  return blob;
}

/** Return a blob as a data URL. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Return the blob of a data URL of a picture; throws where it is none. No request is made for it. */
export function blobOf(url) {
  const match = /^data:(image\/(?:png|jpeg|webp|gif));base64,([A-Za-z0-9+/=]+)$/.exec(url);
  if (!match) throw new Error("not a picture");
  const bytes = Uint8Array.from(atob(match[2]), (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: match[1] });
}

/** The files of a drop or paste that may be pictures. */
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}
