//! Health of a GPU: remapped rows, recovery action.

use std::{
    ffi::{c_int, c_uint},
    time::SystemTime,
};

use nvml_wrapper_sys::bindings::{
    field_id::{NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED},
    nvmlFieldValue_t, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT,
};

use super::{declare::device, handle::GPU, out::put};
use crate::code::{INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS};

device!(nvmlDeviceGetRemappedRows, &[GPU], (correctable: *mut c_uint, uncorrectable: *mut c_uint, pending: *mut c_uint, failed: *mut c_uint), |handle, _store, state| {
    let rows = handle.gpu(state)?.remapped;
    put(correctable, rows.correctable)?;
    put(uncorrectable, rows.uncorrectable)?;
    put(pending, rows.pending.into())?;
    put(failed, rows.failed.into())
});

device!(nvmlDeviceGetFieldValues, &[GPU], (count: c_int, fields: *mut nvmlFieldValue_t), |handle, _store, state| {
    let gpu = handle.gpu(state)?;
    let count = usize::try_from(count).unwrap_or_default();
    if count == 0 || fields.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_micros());
    // SAFETY: not null; the caller gives `count` of them.
    for field in unsafe { std::slice::from_raw_parts_mut(fields, count) } {
        let value = match field.fieldId {
            NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => Some(gpu.recovery_action),
            NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED => Some((!gpu.model().is_ampere()).into()),
            _ => None,
        };
        field.timestamp = i64::try_from(now).unwrap_or_default();
        field.latencyUsec = 0;
        field.nvmlReturn = if value.is_some() { SUCCESS } else { NOT_SUPPORTED };
        field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
        field.value.uiVal = value.unwrap_or_default();
    }
    Ok(())
});
