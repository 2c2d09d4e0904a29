// Devices of the kernel's sample driver mtty, a card with two serial ports, as they are without towline.
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';

/** One access to a register: BAR (the port's number) and offset. */
export type Register = readonly [bar: number, offset: number];

const mtty = '/sys/devices/virtual/mtty/mtty';
/** Registers of a UART, by offset. With DLAB in LCR set, the first two are the divisor. */
const TX = 0;
const IER = 1;
const FCR = 2;
const LCR = 3;
const MCR = 4;
const SCR = 7;
const DLAB = 0x80;
/** In IER: an interrupt where there is nothing to send. */
export const IER_TRANSMITTER_EMPTY = 0x02;
/** FIFO on, both directions cleared. */
const FCR_CLEAR = 0x07;

export const exists = (uuid: string): boolean => existsSync(`${mtty}/${uuid}`);

/** Makes a device with both ports. Its registers are all zero. */
export const create = (uuid: string): Promise<void> =>
  writeFile(`${mtty}/mdev_supported_types/mtty-2/create`, `${uuid}\n`);

export const remove = (uuid: string): Promise<void> => writeFile(`${mtty}/${uuid}/remove`, '1\n');

/** Whether this kernel tells the states of devices besides over their descriptors. */
export const hasDebugfs = (): boolean => existsSync('/sys/kernel/debug/vfio');

/** The state by debugfs, in our words; `absent` where there is no such device. */
export async function kernelState(uuid: string): Promise<string> {
  if (!exists(uuid)) return 'absent';
  const text = await readFile(`/sys/kernel/debug/vfio/${uuid}/migration/state`, 'utf8');
  return text.trim().toLowerCase().replaceAll('_', '-');
}

/** What a guest would have written into the registers, a different thing for every `seed`: the values in the order of {@link observed}. */
export function written(seed: number): number[] {
  const byte = (n: number): number => (Math.imul(seed + 1, 0x9e37_79b1) >>> (n % 24)) & 0xff;
  // Port 0: no interrupt enabled in IER would fire without a vector; LCR without DLAB. Port 1: the divisor stays selected.
  return [
    byte(1) & 0x0f,
    byte(2) & 0x7f,
    byte(3) & 0x0f,
    byte(4),
    byte(5),
    byte(6),
    DLAB | (byte(7) & 0x7f),
    byte(8) & 0x0f,
    byte(9),
  ];
}

/** The registers that keep what is written. Reading them changes nothing. */
export const observed: readonly Register[] = [
  [0, IER],
  [0, LCR],
  [0, MCR],
  [0, SCR],
  [1, TX],
  [1, IER],
  [1, LCR],
  [1, MCR],
  [1, SCR],
];

/** The accesses that bring about `values`: a divisor is taken only after DLAB, which clears it. */
export function writes(values: readonly number[]): (readonly [bar: number, offset: number, value: number])[] {
  const at = (n: number): number => values[n] ?? 0;
  return [
    [0, FCR, FCR_CLEAR],
    [0, LCR, at(1)],
    [0, IER, at(0)],
    [0, MCR, at(2)],
    [0, SCR, at(3)],
    [1, LCR, at(6)],
    [1, TX, at(4)],
    [1, IER, at(5)],
    [1, MCR, at(7)],
    [1, SCR, at(8)],
  ];
}

/** What the port 0 was given to send and loops back: bytes in its FIFO. */
export const fifoWrites = (bytes: readonly number[]): (readonly [number, number, number])[] =>
  bytes.map((byte) => [0, TX, byte]);

/** Reads that take so many bytes out of the FIFO of port 0. */
export const fifoReads = (count: number): Register[] => Array.from({ length: count }, () => [0, TX] as const);
