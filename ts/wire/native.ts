/**
 * From the JSON of the native inspector to frames.
 */
import { TowlineError } from '../errors.js';
import type { SectionKind, StreamFrame, StreamItem } from './frames.js';

interface RawAnswer {
  events?: RawEvent[];
  damage: { offset: string; sequence: number | null; message: string } | null;
}

type RawEvent = { type: string } & Record<string, unknown>;

const kinds: Readonly<Record<string, SectionKind>> = {
  devicestate: 'device-state',
  'device-state': 'device-state',
  memory: 'memory',
  caller: 'caller',
  exposure: 'exposure',
};

/** `FILLER_TYPE` of crates/engine: optional, and unknown to the format itself. */
const FILLER_TYPE = 0x7f01;

function hex(format: unknown): string {
  return Array.isArray(format) ? Buffer.from(format as number[]).toString('hex') : String(format);
}

function frame(event: RawEvent): StreamFrame {
  switch (event.type) {
    case 'section-begin': {
      const kind = kinds[String(event['kind'])];
      if (kind === undefined) break;
      return {
        ...(event as unknown as Extract<StreamFrame, { type: 'section-begin' }>),
        kind,
        format: hex(event['format']),
      };
    }
    case 'dialogue':
      return {
        type: 'dialogue',
        bytes: Number(event['bytes']),
        message: typeof event['message'] === 'string' ? event['message'] : null,
      };
    case 'skipped':
      return event['frameType'] === FILLER_TYPE
        ? { type: 'filler', channel: Number(event['channel']), bytes: Number(event['bytes']) }
        : (event as unknown as StreamFrame);
    case 'header':
    case 'state-chunk':
    case 'pages':
    case 'section-data':
    case 'round-end':
    case 'manifest':
    case 'stream-end':
      return event as unknown as StreamFrame;
    default:
      break;
  }
  throw new TowlineError('ERR_TOWLINE_INTERNAL', `the native inspector told of ${JSON.stringify(event).slice(0, 200)}`);
}

/** The frames of one answer, and the damage after them. */
export function readAnswer(json: string): StreamItem[] {
  const answer = JSON.parse(json) as RawAnswer;
  const items: StreamItem[] = (answer.events ?? []).map(frame);
  if (answer.damage !== null) items.push({ type: 'damage', ...answer.damage });
  return items;
}
