'use strict';
// The TCP front of the embedded MongoDB engine: reads wire-protocol messages, hands each to the engine, writes the
// answers back in the order of the questions of a connection. Connections do not wait for one another.
//
// usage: node mongo_listener.js --modules NODE_MODULES --data DIRECTORY --host HOST --port PORT [--cache-mib MIB]
//
// SIGTERM and SIGINT: no new connections, answers under way are finished, the engine is closed (a checkpoint), exit 0.
// Whatever goes wrong on one connection ends that connection only.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { parseArgs } = require('node:util');

const OP_REPLY = 1;
const OP_QUERY = 2004; // only the very first "hello" of old handshakes
const OP_MSG = 2013;
const HEADER_BYTES = 16;
const MORE_TO_COME = 2; // a flag of OP_MSG: no answer is wanted
const MESSAGE_BYTES_MAX = 48000000 + 16384; // what the engine's hello promises, and some room as mongod leaves
const MESSAGE_BYTES_OFFERED = 30000000; // the engine's limit, less what its arrays need more than the wire's sequences
const WAITING_BYTES_MAX = 2 * MESSAGE_BYTES_MAX; // a client that sends faster than it is answered has to wait
const CLOSE_TIMEOUT_MS = 20000;
const DATA_LOOKED_AT_MS = 5000;

const { values: options } = parseArgs({
  options: {
    modules: { type: 'string' },
    data: { type: 'string' },
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string' },
    'cache-mib': { type: 'string', default: '1024' },
  },
});

function log(text) {
  process.stdout.write(`${new Date().toISOString()} ${text}\n`);
}

// ---- messages ----------------------------------------------------------------------------------------------------

/** Returns the name of an OP_MSG's command: the first key of its body section; '' if there is none. */
function commandName(message) {
  let at = HEADER_BYTES + 4; // after the flags
  while (at < message.length && message[at] === 1) at += 1 + message.readInt32LE(at + 1); // document sequences
  const name = at + 1 + 4 + 1; // section kind, document length, type of the first element
  const end = message[at] === 0 ? message.indexOf(0, name) : -1;
  return end < 0 ? '' : message.toString('latin1', name, end);
}

const INT32 = 0x10;
const SESSION_FIELD = Buffer.from('logicalSessionTimeoutMinutes\0');
const HIDDEN_FIELD = Buffer.from('withoutSessionTimeoutMinutes\0'); // as long, and no driver knows it
const SIZE_FIELD = Buffer.from('\x10maxMessageSizeBytes\0');

/**
 * Two fields of the engine's hello are wrong. It has no sessions, but a driver that believes it has
 * sends a session id with every command. And it refuses messages of more than 33.6 MB, although it offers 48. Both are
 * corrected in place, in answers to a hello only: no document of a user's is ever touched.
 */
function corrected(hello) {
  const changed = Buffer.from(hello);
  const session = changed.indexOf(SESSION_FIELD);
  if (session >= 0) HIDDEN_FIELD.copy(changed, session);
  const size = changed.indexOf(SIZE_FIELD);
  if (size >= 0) changed.writeInt32LE(MESSAGE_BYTES_OFFERED, size + SIZE_FIELD.length);
  return changed;
}

/** Returns a BSON document of numbers (integers as int32, `ok` as double) and strings. */
function bson(fields) {
  const elements = Object.entries(fields).map(([name, value]) => {
    const key = Buffer.from(`${name}\0`);
    if (name === 'ok') {
      const number = Buffer.alloc(8);
      number.writeDoubleLE(value);
      return Buffer.concat([Buffer.from([0x01]), key, number]);
    }
    if (typeof value === 'number') {
      const number = Buffer.alloc(4);
      number.writeInt32LE(value);
      return Buffer.concat([Buffer.from([INT32]), key, number]);
    }
    const text = Buffer.from(`${value}\0`);
    const size = Buffer.alloc(4);
    size.writeInt32LE(text.length);
    return Buffer.concat([Buffer.from([0x02]), key, size, text]);
  });
  const body = Buffer.concat(elements);
  const size = Buffer.alloc(4);
  size.writeInt32LE(4 + body.length + 1);
  return Buffer.concat([size, body, Buffer.from([0])]);
}

/** Returns the answer to a message the engine could not take at all; null if the client waits for none. */
function refusal(message, error) {
  if (message.readInt32LE(12) !== OP_MSG || message.readInt32LE(HEADER_BYTES) & MORE_TO_COME) return null;
  const [, codeName = 'InternalError'] = /embedded MongoDB error: (\w+):/.exec(error.message) ?? [];
  const code = codeName === 'BSONObjectTooLarge' ? 10334 : 1; // 1: InternalError
  const response = bson({ ok: 0, errmsg: error.message, code, codeName });
  return { requestId: message.readInt32LE(4), moreToCome: false, legacy: false, response };
}

/** Returns what to write for the engine's answer: header and document. */
function framed(reply, id, isHello) {
  const document = isHello ? corrected(reply.response) : reply.response;
  const header = Buffer.alloc(HEADER_BYTES + (reply.legacy ? 20 : 5)); // all further fields are 0
  header.writeInt32LE(header.length + document.length, 0);
  header.writeInt32LE(id, 4);
  header.writeInt32LE(reply.requestId, 8);
  header.writeInt32LE(reply.legacy ? OP_REPLY : OP_MSG, 12);
  if (reply.legacy) header.writeInt32LE(1, 32); // number of documents
  return [header, document];
}

/** Cuts a stream of chunks into messages. A large message is joined once, when it is complete. */
class Framer {
  constructor() {
    this.chunks = [];
    this.bytes = 0;
  }

  /** Takes a chunk; yields each complete message. Throws for bytes that are none. */
  *push(chunk) {
    this.chunks.push(chunk);
    this.bytes += chunk.length;
    while (this.bytes >= HEADER_BYTES) {
      if (this.chunks[0].length < HEADER_BYTES) this.chunks = [Buffer.concat(this.chunks)];
      const length = this.chunks[0].readInt32LE(0);
      if (length < HEADER_BYTES || length > MESSAGE_BYTES_MAX) throw new Error(`a message of ${length} bytes`);
      const code = this.chunks[0].readInt32LE(12);
      if (code !== OP_MSG && code !== OP_QUERY) throw new Error(`wire-protocol operation ${code} is not supported`);
      if (this.bytes < length) return;
      const all = this.chunks.length === 1 ? this.chunks[0] : Buffer.concat(this.chunks);
      const rest = all.subarray(length);
      this.chunks = rest.length ? [rest] : [];
      this.bytes = rest.length;
      yield all.subarray(0, length);
    }
  }
}

// ---- connections -------------------------------------------------------------------------------------------------

let lastId = 0;
const connections = new Set();

class Connection {
  constructor(engine, socket) {
    this.engine = engine;
    this.socket = socket;
    this.framer = new Framer();
    this.waitingBytes = 0;
    this.answering = Promise.resolve(); // the end of the answers requested so far
    connections.add(this);
    socket.setNoDelay(true);
    socket.on('error', () => socket.destroy()); // the client has disconnected
    socket.on('close', () => connections.delete(this));
    socket.on('data', (chunk) => this.take(chunk));
  }

  take(chunk) {
    try {
      for (const message of this.framer.push(chunk)) {
        this.waitingBytes += message.length;
        this.answering = this.answering.then(() => this.answer(message));
      }
    } catch (error) {
      this.drop(error);
    }
    if (this.waitingBytes > WAITING_BYTES_MAX) this.socket.pause();
  }

  async answer(message) {
    try {
      if (this.socket.destroyed) return;
      const legacy = message.readInt32LE(12) === OP_QUERY;
      const isHello = legacy || /^(hello|ismaster)$/i.test(commandName(message));
      const reply = await this.engine.roundTrip(message).catch((error) => {
        log(`a message of ${message.length} bytes was refused: ${error.message}`);
        return refusal(message, error);
      });
      if (!reply || reply.moreToCome || this.socket.destroyed) return; // an unacknowledged write wants no answer
      lastId = (lastId + 1) & 0x7fffffff;
      const [header, document] = framed(reply, lastId, isHello);
      this.socket.cork();
      this.socket.write(header);
      const flushed = this.socket.write(document);
      this.socket.uncork();
      if (!flushed) await this.drained();
    } catch (error) {
      this.drop(error);
    } finally {
      this.waitingBytes -= message.length;
      if (this.socket.isPaused() && this.waitingBytes <= WAITING_BYTES_MAX) this.socket.resume();
    }
  }

  /** Resolves once the client has taken what was written, or has gone. */
  drained() {
    return new Promise((resolve) => {
      const done = () => {
        this.socket.off('drain', done);
        this.socket.off('close', done);
        resolve();
      };
      this.socket.on('drain', done);
      this.socket.on('close', done);
    });
  }

  drop(error) {
    if (this.socket.destroyed) return;
    log(`connection of port ${this.socket.remotePort} dropped: ${error.message}`);
    this.socket.destroy();
  }
}

// ---- the server --------------------------------------------------------------------------------------------------

/** Returns an OP_MSG with a command, for the listener's own requests to the engine. */
function command(fields) {
  const document = bson({ ...fields, $db: 'admin' });
  const head = Buffer.alloc(HEADER_BYTES + 4 + 1); // no flags; one section, of kind 0
  head.writeInt32LE(head.length + document.length, 0);
  head.writeInt32LE(OP_MSG, 12);
  return Buffer.concat([head, document]);
}

/** Bounds the storage engine's memory; by default it would take half of the machine's. */
async function limitCache(engine, mib) {
  const reply = await engine.roundTrip(
    command({ setParameter: 1, wiredTigerEngineRuntimeConfig: `cache_size=${mib}M` }),
  );
  if (reply.response.includes('errmsg\0')) log(`the cache could not be limited: ${reply.response.toString('latin1')}`);
}

async function main() {
  if (!options.modules || !options.data || !options.port) throw new Error('--modules, --data and --port are needed');
  const { Engine } = require(path.join(options.modules, '@0q', 'embedded-mongodb'));
  const engine = await Engine.open(options.data);
  await limitCache(engine, Number(options['cache-mib']));

  const server = net.createServer((socket) => new Connection(engine, socket));
  server.on('error', (error) => {
    log(`cannot listen on ${options.host}:${options.port}: ${error.message}`);
    engine.close().finally(() => process.exit(1));
  });
  server.listen(Number(options.port), options.host, () => log(`ready on ${options.host}:${options.port}`));

  // A directory that was deleted under a running server has no name to stop it by any more: it goes by itself.
  setInterval(() => {
    if (!fs.existsSync(options.data)) {
      log('the data directory has gone: ended');
      process.exit(1);
    }
  }, DATA_LOOKED_AT_MS).unref();

  let stopping = false;
  const stop = async (name) => {
    if (stopping) return;
    stopping = true;
    log(`${name}: stopping, ${connections.size} connections`);
    server.close();
    const timer = setTimeout(() => {
      log('a command takes too long; ended without it, the journal has what was acknowledged');
      process.exit(1);
    }, CLOSE_TIMEOUT_MS);
    for (const connection of connections) connection.socket.pause(); // no further questions
    await Promise.all([...connections].map((connection) => connection.answering));
    for (const connection of connections) connection.socket.destroySoon(); // after what is still to be written
    await engine.close();
    clearTimeout(timer);
    log('stopped');
    process.exit(0);
  };
  process.on('SIGTERM', () => stop('SIGTERM'));
  process.on('SIGINT', () => stop('SIGINT'));
}

main().catch((error) => {
  log(`cannot start: ${error.message}`);
  process.exit(1);
});
