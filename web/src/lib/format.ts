// Numbers as the page shows them.

/** 1,204 or 1 204, as the language has it. */
export function count(n: number, locale: string): string {
  return n.toLocaleString(locale);
}

/** Of a context: 834, 8.2k, 128k. */
export function short(n: number): string {
  if (n < 1000) return String(n);
  const thousands = n / 1024;
  return `${thousands < 10 && !Number.isInteger(thousands) ? thousands.toFixed(1) : Math.round(thousands)}k`;
}

/** 0.34 s, 12 s, 2 min 5 s. */
export function duration(ms: number): string {
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(s < 1 ? 2 : 1)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

/** 512 B, 3.4 kB, 1.2 MB. */
export function size(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(bytes < 1e4 ? 1 : 0)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** 99.8 %, 3.1 %, 0.02 %, of a log-probability. */
export function percent(logprob: number): string {
  const p = 100 * Math.exp(logprob);
  if (p >= 99.95) return '100 %';
  if (p >= 1) return `${p.toFixed(1)} %`;
  return p >= 0.005 ? `${p.toFixed(2)} %` : '< 0.01 %';
}

/** Save a text as a file of the user's. */
export function download(name: string, text: string, type = 'application/json'): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name.replace(/[\\/:*?"<>|\u0000-\u001f]+/g, '-');
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
