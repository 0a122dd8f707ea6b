/* Made from wire.toml by `python -m firmware_bridge.generate`; change it there. */
#ifndef PVL_WIRE_H
#define PVL_WIRE_H

/* versions */
#define PVL_VERSION 1u
#define PVL_SCHEMA_HASH 0xf2698206u

/* limits */
#define PVL_MAX_BODY 128u
#define PVL_CRC_SIZE 4u
#define PVL_MUST_UNDERSTAND 240u
#define PVL_NO_RATE 65535u
#define PVL_NO_AGE 65535u
#define PVL_NO_SQI 255u
#define PVL_NO_SAMPLE (-128)
#define PVL_PR_MIN_X10 300u
#define PVL_PR_MAX_X10 3000u
#define PVL_RR_MIN_X10 20u
#define PVL_RR_MAX_X10 1500u
#define PVL_MAX_RATE_HZ 100u
#define PVL_MAX_ENCODED 129u

/* what the display holds itself to */
#define PVL_MAX_AGE_MS 5000u
#define PVL_MAX_LAG_MS 1000u
#define PVL_LEAK_INTERVAL_MS 4000u
#define PVL_SETTLE_MS 2000u
#define PVL_SETTLE_BAND_MS 250u
#define PVL_SETTLE_PAUSE_MS 1000u
#define PVL_BLANK_AFTER_MS 3000u
#define PVL_FAULT_BAD_FRAMES 3u
#define PVL_FAULT_WINDOW_MS 10000u
#define PVL_FAULT_CLEARING_FRAMES 5u
#define PVL_FORGET_AFTER_MS 7200000u
#define PVL_SEQ_TRUSTED_MS 30000u
#define PVL_TRACE_SLACK_MS 400u
#define PVL_TEST_MS 2000u

/* message types */
#define PVL_TYPE_VITALS 0x10u
#define PVL_TYPE_WAVE 0x11u
#define PVL_TYPE_HELLO 0x12u
#define PVL_TYPE_BYE 0x1fu
#define PVL_TYPE_STATUS 0x81u

/* header flags */
#define PVL_FLAG_DEMO 0x01u
#define PVL_FLAG_INVESTIGATIONAL 0x02u

/* offsets in the body */
#define PVL_HEADER_VER 0u
#define PVL_HEADER_TYPE 1u
#define PVL_HEADER_FLAGS 2u
#define PVL_HEADER_LEN 3u
#define PVL_HEADER_SESSION 4u
#define PVL_HEADER_SEQ 6u
#define PVL_HEADER_T_MS 8u
#define PVL_HEADER_SIZE 12u

/* offsets in the payload of VITALS */
#define PVL_VITALS_PR_X10 0u
#define PVL_VITALS_RR_X10 2u
#define PVL_VITALS_PR_STATE 4u
#define PVL_VITALS_RR_STATE 5u
#define PVL_VITALS_PR_SQI 6u
#define PVL_VITALS_RR_SQI 7u
#define PVL_VITALS_PR_AGE_DS 8u
#define PVL_VITALS_RR_AGE_DS 10u
#define PVL_VITALS_PR_AVG_S 12u
#define PVL_VITALS_RR_AVG_S 13u
#define PVL_VITALS_TECH 14u
#define PVL_VITALS_GAP_DS 18u
#define PVL_VITALS_SIZE 20u

/* offsets in the payload of WAVE */
#define PVL_WAVE_FIRST_INDEX 0u
#define PVL_WAVE_CHANNEL 4u
#define PVL_WAVE_RATE_HZ 5u
#define PVL_WAVE_SAMPLES 6u
#define PVL_WAVE_SIZE 6u

/* offsets in the payload of HELLO */
#define PVL_HELLO_MIN_VER 0u
#define PVL_HELLO_MAX_VER 1u
#define PVL_HELLO_SCHEMA 2u
#define PVL_HELLO_BUILD 6u
#define PVL_HELLO_MODEL 10u
#define PVL_HELLO_PRODUCT 14u
#define PVL_HELLO_SIZE 30u

/* offsets in the payload of BYE */
#define PVL_BYE_SIZE 0u

/* offsets in the payload of STATUS */
#define PVL_STATUS_LAST_SESSION 0u
#define PVL_STATUS_LAST_SEQ 2u
#define PVL_STATUS_FRAMES_OK 4u
#define PVL_STATUS_BAD_COBS 6u
#define PVL_STATUS_BAD_CRC 8u
#define PVL_STATUS_BAD_LEN 10u
#define PVL_STATUS_LOST 12u
#define PVL_STATUS_LATE 14u
#define PVL_STATUS_UPTIME_S 16u
#define PVL_STATUS_SHOWN_PR_X10 18u
#define PVL_STATUS_SHOWN_RR_X10 20u
#define PVL_STATUS_SHOWN_STATE 22u
#define PVL_STATUS_FW_ID 23u
#define PVL_STATUS_SIZE 24u

/* channels of a WAVE */
#define PVL_CHANNEL_PULSE 1u
#define PVL_CHANNEL_RESP 2u

/* states of a vital */
#define PVL_STATE_OFF 0u
#define PVL_STATE_SEARCHING 1u
#define PVL_STATE_VALID 2u
#define PVL_STATE_QUESTIONABLE 3u
#define PVL_STATE_INVALID 4u
#define PVL_STATE_STALE 5u
#define PVL_STATE_OUT_OF_RANGE 6u
#define PVL_STATE_FAULT 7u

/* screen modes */
#define PVL_MODE_LIVE 0u
#define PVL_MODE_WAITING 1u
#define PVL_MODE_LINK_LOST 2u
#define PVL_MODE_LINK_FAULT 3u
#define PVL_MODE_STOPPED 4u
#define PVL_MODE_UPDATE_REQUIRED 5u
#define PVL_MODE_SYNCHRONISING 6u
#define PVL_MODE_DELAYED 7u

/* technical conditions */
#define PVL_TECH_NO_CAMERA 0x0001u
#define PVL_TECH_FRAMES_STALLED 0x0002u
#define PVL_TECH_TOO_DARK 0x0004u
#define PVL_TECH_OVEREXPOSED 0x0008u
#define PVL_TECH_MOTION 0x0010u
#define PVL_TECH_SUBJECT_LOST 0x0020u
#define PVL_TECH_LOW_SIGNAL 0x0040u
#define PVL_TECH_LIGHT_FLICKER 0x0080u
#define PVL_TECH_METHODS_DISAGREE 0x0100u
#define PVL_TECH_MODEL_FAULT 0x0200u
#define PVL_TECH_ENGINE_MISMATCH 0x0400u
#define PVL_TECH_OVER_TEMPERATURE 0x0800u
#define PVL_TECH_LOW_FPS 0x1000u
#define PVL_TECH_STORAGE 0x2000u
#define PVL_TECH_CONFIG 0x4000u
#define PVL_TECH_SELF_TEST_FAILED 0x8000u
#define PVL_TECH_KNOWN 0xffffu

/* verdicts on a frame */
#define PVL_OK 0u
#define PVL_BAD_COBS 1u
#define PVL_BAD_CRC 2u
#define PVL_BAD_LEN 3u
#define PVL_BAD_VERSION 4u
#define PVL_UNKNOWN_TYPE 5u
#define PVL_UNKNOWN_FLAGS 6u
#define PVL_VERDICTS 7u

/* banners */
#define PVL_BANNER_DEMO "DEMO - NOT PATIENT DATA"
#define PVL_BANNER_INVESTIGATIONAL "INVESTIGATIONAL - NOT FOR DIAGNOSIS OR ALARMS"

/* words, each ended by 0: modes, states, conditions with the most important first, an unknown one */
#define PVL_TEXT_MODE 0u
#define PVL_TEXT_STATE 8u
#define PVL_TEXT_TECH 16u
#define PVL_TEXT_UNKNOWN_TECH 32u
#define PVL_TEXT_COUNT 33u
#define PVL_TECH_ORDER 15, 10, 9, 14, 0, 1, 11, 2, 3, 5, 4, 7, 12, 8, 6, 13
#define PVL_TEXTS \
    "\0" \
    "WAITING FOR CAMERA UNIT\0" \
    "CAMERA LINK LOST\0" \
    "LINK FAULT\0" \
    "MONITORING STOPPED\0" \
    "DISPLAY UPDATE REQUIRED\0" \
    "SYNCHRONISING\0" \
    "DATA DELAYED\0" \
    "OFF\0" \
    "SEARCHING\0" \
    "\0" \
    "UNCERTAIN\0" \
    "NO RELIABLE SIGNAL\0" \
    "NO RECENT PICTURE\0" \
    "OUT OF RANGE\0" \
    "CAMERA UNIT FAULT\0" \
    "SELF TEST FAILED\0" \
    "CAMERA UNIT SOFTWARE FAULT\0" \
    "CAMERA UNIT SOFTWARE FAULT\0" \
    "CAMERA UNIT SETTINGS FAULT\0" \
    "NO CAMERA\0" \
    "CAMERA PICTURE STOPPED\0" \
    "CAMERA UNIT TOO HOT\0" \
    "TOO DARK\0" \
    "TOO BRIGHT\0" \
    "BABY NOT IN VIEW\0" \
    "MOTION\0" \
    "FLICKERING LIGHT\0" \
    "CAMERA TOO SLOW\0" \
    "UNCERTAIN SIGNAL\0" \
    "LOW SIGNAL\0" \
    "CAMERA UNIT STORAGE FULL\0" \
    "CHECK CAMERA UNIT"

#endif
