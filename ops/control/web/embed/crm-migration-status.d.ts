/** Statuses of the import as the server names them; null: not known. */
export type MigrationStatus = "in_progress" | "halted" | "completed" | "failed" | "rolled_back" | "not_started";

export interface MigrationState {
  readonly status: MigrationStatus | null;
  /** 0 to 100; null unless the import is in progress. */
  readonly percent: number | null;
  /** Whether there is anything to show: true only while the import is in progress. */
  readonly visible: boolean;
}

export type TokenProvider = () => string | null | undefined | Promise<string | null | undefined>;

export interface PollerOptions {
  /** Default: /v1/crm_migration/status. */
  readonly url?: string | null;
  /** Seconds; default 15. */
  readonly intervalS?: number | string;
  /** As fetch takes it; default same-origin. */
  readonly credentials?: RequestCredentials | null;
  /** Gives the session token, sent as a bearer token. */
  readonly tokenProvider?: TokenProvider | null;
}

export const DEFAULT_URL: string;
export const DEFAULT_INTERVAL_S: number;
export const HIDDEN: MigrationState;

/** Return the state that an answer of the server stands for; throws if it is no answer of ours. */
export function stateOf(answer: unknown): MigrationState;

/** Polls the status, one request at a time; silent about errors; stops on `completed` and `not_started`. */
export class MigrationStatusPoller {
  constructor(options: PollerOptions, onChange: (state: MigrationState) => void);
  readonly state: MigrationState;
  readonly running: boolean;
  start(): void;
  stop(): void;
}

/** The custom element `<crm-migration-status>`. */
export class CrmMigrationStatus extends HTMLElement {
  tokenProvider: TokenProvider | null;
  readonly state: MigrationState;
  refresh(): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "crm-migration-status": CrmMigrationStatus;
  }
  interface HTMLElementEventMap {
    "crm-migration-change": CustomEvent<MigrationState>;
  }
}
