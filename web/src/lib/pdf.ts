// The text of a PDF, page by page, by PDF.js in a worker of this origin.
import { getDocument, GlobalWorkerOptions } from 'pdfjs-dist';
import worker from 'pdfjs-dist/build/pdf.worker.min.mjs?url';

GlobalWorkerOptions.workerSrc = worker;

/** Lines of each page. Throws for what is no PDF, or has a password. */
export async function pdfPages(bytes: Uint8Array): Promise<string[]> {
  const loading = getDocument({ data: bytes, useWorkerFetch: false, disableFontFace: true });
  try {
    const document = await loading.promise;
    const pages: string[] = [];
    for (let number = 1; number <= document.numPages; number += 1) {
      const page = await document.getPage(number);
      const { items } = await page.getTextContent();
      const texts = items.map((item) => ('str' in item ? item.str + (item.hasEOL ? '\n' : '') : ''));
      pages.push(texts.join('').trim());
      page.cleanup();
    }
    return pages;
  } finally {
    await loading.destroy();
  }
}
