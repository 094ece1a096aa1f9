// Files that are read into a message as text: texts of any kind, and PDF. Nothing is uploaded but their text.
import type { Attachment } from './types';

export const MOST_BYTES = 20 * 1024 * 1024;
/** A paste of this many characters becomes a file. */
export const LONG_PASTE = 4000;

export type Refusal = 'too-large' | 'not-text' | 'no-text' | 'unreadable';

export class Refused extends Error {
  constructor(
    readonly reason: Refusal,
    readonly file: string,
  ) {
    super(reason);
  }
}

/** The text of bytes that are text: UTF-8, or UTF-16 with its mark; null for others. */
export function decodeText(bytes: Uint8Array): string | null {
  const utf16 = (bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff);
  const encoding = utf16 ? (bytes[0] === 0xff ? 'utf-16le' : 'utf-16be') : 'utf-8';
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    return text.includes('\0') ? null : text;
  } catch {
    return null;
  }
}

/** Read a file. Refused if it is too large, or has no text. */
export async function readFile(file: File): Promise<Attachment> {
  if (file.size > MOST_BYTES) throw new Refused('too-large', file.name);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const head = new TextDecoder('latin1').decode(bytes.subarray(0, 1024));
  if (head.includes('%PDF-')) return readPdf(file, bytes);
  const text = decodeText(bytes);
  if (text === null) throw new Refused('not-text', file.name);
  return { name: file.name, kind: 'text', size_bytes: file.size, text };
}

async function readPdf(file: File, bytes: Uint8Array): Promise<Attachment> {
  let pages: string[];
  try {
    const { pdfPages } = await import('./pdf');
    pages = await pdfPages(bytes);
  } catch (error) {
    console.error(error);
    throw new Refused('unreadable', file.name);
  }
  const text = pages.join('\n\n').trim();
  if (text === '') throw new Refused('no-text', file.name);
  return { name: file.name, kind: 'pdf', size_bytes: file.size, text, n_pages: pages.length };
}
