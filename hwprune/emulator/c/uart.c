/* Your board's serial port. With ST's HAL, for instance, hwprune_put is
     HAL_UART_Transmit(&port, (uint8_t *)&c, 1, HAL_MAX_DELAY)
   and hwprune_get is HAL_UART_Receive likewise. Set up the clock and the flash's wait states before
   the first character: a reset leaves them slow. */
#include "serial.h"

#error "write hwprune_put and hwprune_get for your board here"
