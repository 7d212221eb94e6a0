import type { ComputedRef, DeepReadonly, MaybeRefOrGetter, ShallowRef } from "vue";

import type { MigrationState, MigrationStatus, TokenProvider } from "./crm-migration-status.js";

export interface CrmMigrationStatusOptions {
  /** Default: /v1/crm_migration/status. */
  url?: MaybeRefOrGetter<string | null | undefined>;
  /** Seconds; default 15. */
  intervalS?: MaybeRefOrGetter<number | undefined>;
  /** As fetch takes it; default same-origin. */
  credentials?: MaybeRefOrGetter<RequestCredentials | null | undefined>;
  /** Gives the session token, sent as a bearer token. */
  tokenProvider?: TokenProvider | null;
}

export interface CrmMigrationStatusRefs {
  state: DeepReadonly<ShallowRef<MigrationState>>;
  /** Whether there is anything to show: true only while the import is in progress. */
  visible: ComputedRef<boolean>;
  /** 0 to 100; null unless the import is in progress. */
  percent: ComputedRef<number | null>;
  status: ComputedRef<MigrationStatus | null>;
  /** Poll now, also after the polling has ended. */
  refresh: () => void;
  /** Stop polling. */
  stop: () => void;
}

/** Return the status of the CRM import as refs; polls while the component (or the effect scope) lives. */
export function useCrmMigrationStatus(options?: CrmMigrationStatusOptions): CrmMigrationStatusRefs;
