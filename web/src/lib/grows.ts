// A text area as high as its text, up to its max-height.
import type { Attachment } from 'svelte/attachments';

/** text: read so that the height follows it, however it changes. */
export function grows(text: () => string): Attachment<HTMLTextAreaElement> {
  return (area) => {
    text();
    area.style.height = 'auto';
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
}
