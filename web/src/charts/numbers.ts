// Numbers, times and sizes as short text.
const UNITS: readonly (readonly [number, string])[] = [
  [1e12, 'T'],
  [1e9, 'G'],
  [1e6, 'M'],
  [1e3, 'k'],
];

/** Up to four significant digits, never more than eight characters: 0.0312, 12.5, 1.25k, 3.2e−7. */
export function short(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  const size = Math.abs(value);
  if (size === 0) return '0';
  let text: string;
  if (size < 1e-3) text = scientific(value, Math.min(digits, 3) - 1);
  else if (size >= 1e15) text = scientific(value, 2);
  else if (size >= 1e5) text = withUnit(value, Math.min(digits, 3));
  else text = trimmed(value.toPrecision(Math.max(digits, Math.floor(Math.log10(size)) + 1)));
  return text.replace(/-/g, '−');
}

/** All digits that mean something, for readouts. */
export function exact(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-4) return scientific(value, 3).replace(/-/g, '−');
  return trimmed(value.toPrecision(Number.isInteger(value) ? 15 : 6)).replace(/-/g, '−');
}

/** A tick's label: all ticks of an axis with the same number of decimals. */
export function tickLabels(ticks: readonly number[], unit: 'number' | 'bytes' | 'seconds' = 'number'): string[] {
  if (unit === 'bytes') {
    const labels = (digits: number): string[] => ticks.map((tick) => bytes(tick, digits));
    return labels([3, 4, 5].find((digits) => new Set(labels(digits)).size === ticks.length) ?? 6);
  }
  const largest = Math.max(0, ...ticks.map(Math.abs));
  if (largest >= 1e5 || (largest > 0 && largest < 1e-3)) return ticks.map((tick) => short(tick, 3));
  const decimals = Math.max(0, ...ticks.map((tick) => (trimmed(tick.toPrecision(6)).split('.')[1] ?? '').length));
  return ticks.map((tick) => (decimals > 4 ? short(tick, 3) : tick.toFixed(decimals).replace(/-/g, '−')));
}

export function bytes(value: number, digits = 3): string {
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  let left = value;
  while (Math.abs(left) >= 1024 && at < names.length - 1) {
    left /= 1024;
    at++;
  }
  return `${trimmed(left.toPrecision(digits))} ${names[at]}`;
}

/** 8.2 s, 3 min 20 s, 2 h 05 min, 3 d 4 h. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return '–';
  if (seconds >= 0.001 && seconds < 0.1) return `${trimmed(seconds.toPrecision(1))} s`;
  if (seconds < 10) return `${trimmed(Math.max(0, seconds).toFixed(1))} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return pair(whole, 60, 'min', 's');
  if (whole < 86400) return pair(Math.round(whole / 60), 60, 'h', 'min');
  return pair(Math.round(whole / 3600), 24, 'd', 'h');
}

function pair(value: number, base: number, large: string, small: string): string {
  const rest = value % base;
  const head = Math.floor(value / base);
  // beyond ten minutes nobody counts seconds
  const tail = rest && !(small === 's' && head >= 10) ? ` ${String(rest).padStart(2, '0')} ${small}` : '';
  return `${head} ${large}${tail}`;
}

function scientific(value: number, decimals: number): string {
  const [mantissa, exponent] = value.toExponential(decimals).split('e');
  return `${trimmed(mantissa ?? '0')}e${Number(exponent)}`;
}

function withUnit(value: number, digits: number): string {
  const [size, name] = UNITS.find(([limit]) => Math.abs(value) >= limit) ?? [1, ''];
  return `${trimmed((value / size).toPrecision(digits))}${name}`;
}

function trimmed(text: string): string {
  return text.includes('.') && !text.includes('e') ? text.replace(/\.?0+$/, '') : text;
}
