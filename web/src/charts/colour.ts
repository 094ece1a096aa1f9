// Colours that stay apart for all kinds of colour vision, in both themes.
//
// Curves: after Okabe and Ito (2008), each in a shade for a light and one for a dark page. Tokens: signed values
// from orange over nothing to blue, amounts from nothing to violet. These are backgrounds under text, hence
// transparent: 0 looks like the page, and the text keeps its own colour and contrast. `light-dark` lets the page's
// theme choose, so that nothing is drawn anew when it changes.

const CURVES = [
  'light-dark(#0068b3, #5aaef0)',
  'light-dark(#cf5a00, #f0904a)',
  'light-dark(#00875f, #3fc79a)',
  'light-dark(#b0478a, #e08cc0)',
  'light-dark(#8a6d00, #d8bd4e)',
  'light-dark(#0093b8, #62d0e8)',
  'light-dark(#6b4fc0, #a996f2)',
  'light-dark(#5f6670, #a5adb8)',
] as const;
const DASHES = [undefined, '6 3', '2 3', '8 3 2 3'] as const;

export function curveColour(index: number): string {
  return CURVES[index % CURVES.length]!;
}

/** Later rounds of the palette are told apart by dashes. */
export function curveDash(index: number): string | undefined {
  return DASHES[Math.floor(index / CURVES.length) % DASHES.length];
}

/** diverging: the sign matters. sequential: only the size. */
export type Hue = 'diverging' | 'sequential';

/** A scale from values to backgrounds. limit: the value, or distance from 0, that is drawn strongest. */
export interface ColourScale {
  readonly hue: Hue;
  readonly limit: number;
}

const SHADES = {
  positive: ['0 114 214', '40 130 235'],
  negative: ['224 98 0', '225 100 20'],
  amount: ['132 58 178', '160 90 225'],
} as const;
const STRONGEST = [0.58, 0.68] as const; // opacity: dark text on it, light text on it, both above 4.5 : 1

/**
 * The limit of a scale: the 98th percentile of the sizes, so that one wild token does not bleach all others;
 * at least `least`, so that rounding noise is not painted as if it mattered.
 */
export function limitOf(values: Iterable<number>, least = 0): number {
  const sizes: number[] = [];
  for (const value of values) if (Number.isFinite(value)) sizes.push(Math.abs(value));
  if (sizes.length === 0) return least || 1;
  sizes.sort((a, b) => a - b);
  const size = sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * 0.98))]!;
  return Math.max(size, least) || 1;
}

/** The background of a value; '' where there is none, and for 0. */
export function background(value: number, { hue, limit }: ColourScale): string {
  if (Number.isNaN(value)) return '';
  // the square root lifts small values, which are most of them, above the threshold of sight
  const strength = Math.sqrt(Math.min(1, Math.abs(value) / limit));
  if (strength < 0.05) return '';
  const [light, dark] = SHADES[hue === 'sequential' ? 'amount' : value > 0 ? 'positive' : 'negative'];
  const alpha = STRONGEST.map((strongest) => (strength * strongest).toFixed(2));
  return `light-dark(rgb(${light} / ${alpha[0]}), rgb(${dark} / ${alpha[1]}))`;
}
